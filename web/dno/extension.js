/** Puts a live panel on every DNO sampler of the graph and shows each run on its node's panel. */

import { app } from '../../../scripts/app.js'
import { passGesturesToCanvas } from './canvas_gestures.js'
import { nodeAt } from './graph_nodes.js'
import { createPanel } from './panel.js'
import { setPickedIteration } from './pick.js'
import { followPresets } from './presets.js'
import {
  announcePanel, control, listSessions, listen, loadFrame, loadSession
} from './protocol.js'
import { sessionStore } from './session_store.js'

const SAMPLERS = new Set(['DNO_Sampler', 'DNO_SamplerAdvanced'])
const MARGIN = 6

/** Older front-ends know the root graph as `graph`. */
const root = () => app.rootGraph ?? app.graph

/** Panels by their node. */
const panels = new Map()
const store = sessionStore({ listSessions, loadSession }, showOnItsNode)

function showOnItsNode(session) {
  const node = nodeOf(session)
  const panel = panels.get(node)
  if (panel && newestOf(node) === session) panel.show(session)
}

/** The session's node, if the graph on the page is the one that was queued. */
function nodeOf({ node, workflow }) {
  return workflow && workflow !== root().id ? null : nodeAt(root(), node)
}

function newestOf(node) {
  return store.all().findLast((session) => nodeOf(session) === node)
}

/** Nodes get their ids, and panels their runs, once the graph stands. */
function showAll() {
  for (const [node, panel] of panels) {
    const session = newestOf(node)
    if (session) panel.show(session)
  }
}

function addPanel(node) {
  const panel = createPanel({
    loadFrame,
    control,
    pick: (index) => setPickedIteration(node, index, root(), app.canvas),
    resized: () => makeRoom(node)
  })
  const widget = node.addDOMWidget('dno_panel', 'dno_panel', panel.element, {
    serialize: false,
    margin: MARGIN,
    hideOnZoom: false,
    getMinHeight: () => panel.leastHeight() + 2 * MARGIN
  })
  widget.serialize = false
  passGesturesToCanvas(panel.element, app)
  panels.set(node, panel)
  const { onRemoved } = node
  node.onRemoved = function (...args) {
    panels.delete(node)
    panel.dispose()
    return onRemoved?.apply(this, args)
  }
}

/** Nodes drawn on the canvas grow with the panel; those made of DOM elements do by themselves. */
function makeRoom(node) {
  if (!node.graph || window.LiteGraph?.vueNodesMode) return
  const least = node.computeSize()[1]
  if (node.size[1] < least) node.setSize([node.size[0], least])
  node.setDirtyCanvas(true, true)
}

async function meetServer() {
  try {
    await announcePanel()
    await store.restore()
  } catch (error) {
    console.warn('DNO: the live panel cannot reach its server.', error)
  }
}

function addStyles() {
  const href = new URL('./panel.css', import.meta.url).href
  document.head.append(Object.assign(document.createElement('link'), { rel: 'stylesheet', href }))
}

app.registerExtension({
  name: 'dno.panel',
  setup() {
    addStyles()
    listen({
      ...store.handlers,
      reconnected: meetServer,
      execution_error: (error) => store.promptEnded(error.prompt_id, 'failed', error.exception_message),
      execution_interrupted: ({ prompt_id: id }) => store.promptEnded(id, 'cancelled', '')
    })
    meetServer()
  },
  nodeCreated(node) {
    if (!SAMPLERS.has(node.comfyClass)) return
    followPresets(node)
    addPanel(node)
  },
  afterConfigureGraph: showAll
})
