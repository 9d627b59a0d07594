/** Scrubbing sets the index of every Pick Iteration that reads the run. */

import { nodesFrom } from './graph_nodes.js'

const PICK = 'DNO_PickIteration'
const OUTPUT = 'trajectory'
const WIDGET = 'index'

/** Pick Iteration's number for "the best iteration of every image". */
export const BEST = -1

/** Set the index of all that are connected to the sampler; returns how many there are. */
export function setPickedIteration(sampler, index, root, canvas) {
  const targets = nodesFrom(sampler, OUTPUT, root)
    .filter((node) => node.type === PICK)
    .map((node) => ({ node, widget: node.widgets?.find((widget) => widget.name === WIDGET) }))
    .filter(({ node, widget }) => widget && !isFed(node))
  for (const { node, widget } of targets) {
    if (widget.value === index) continue
    widget.value = index
    widget.callback?.(index, canvas, node)
    node.setDirtyCanvas?.(true, true)
  }
  return targets.length
}

/** Another node gives the number, so the widget's own value does nothing. */
function isFed(node) {
  return node.inputs?.some((input) => input.name === WIDGET && input.link != null)
}
