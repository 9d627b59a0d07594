/** The live panel of one sampler node. */

import { compareView } from './compare.js'
import { RESOLVED, curvesView } from './curves.js'
import { el, setText } from './dom.js'
import { percent } from './format.js'
import { frameLoader } from './frames.js'
import { leastHeight } from './layout.js'
import { BEST } from './pick.js'
import { scrubView } from './scrub.js'
import { firstIndex, isOpen, lastIndex, stepAt } from './session.js'
import { settingsView } from './settings.js'
import { statusView } from './status.js'
import { transportView } from './transport.js'

/** As many of a batch as the server puts into one picture. */
const MOST_SHOWN = 4
const ONE_LINE = 16

/**
 * `loadFrame(session, index, signal)` and `control(session, asked)` reach the server;
 * `pick(index)` hands an iteration to the connected nodes and returns how many there are;
 * `resized()` is called after the panel's least height has changed.
 */
export function createPanel({ loadFrame, control, pick, resized }) {
  let session = null
  let frames = null
  /** The iteration looked at; null follows the run. */
  let chosen = null
  /** The last answer; it holds for the run's state in which it was given, `until` an iteration. */
  let told = { text: '' }
  let drawing = 0

  const status = statusView()
  const compare = compareView(draw)
  const curves = curvesView(scrubTo)
  const scrub = scrubView(scrubTo, scrubToBest)
  const transport = transportView(ask)
  const settings = settingsView(ask)
  const element = el(
    'section', { class: 'dno-panel', 'aria-label': 'DNO run', 'data-state': 'idle' },
    status.element,
    transport.element,
    status.notice,
    status.warnings,
    el(
      'div', { class: 'dno-body' },
      el('div', { class: 'dno-look' }, compare.element, scrub.element),
      el('div', { class: 'dno-read' }, curves.element, settings.element)
    )
  )
  let least = ONE_LINE
  const watcher = new ResizeObserver(() => {
    least = leastHeight(element) ?? least
    resized()
  })
  for (const part of element.querySelectorAll('div')) watcher.observe(part)

  function draw() {
    if (drawing) return
    drawing = requestAnimationFrame(() => {
      drawing = 0
      if (session) drawNow()
    })
  }

  function drawNow() {
    element.dataset.state = session.state
    element.dataset.session = session.session
    element.toggleAttribute('data-empty', !session.steps.length)
    if (told.state !== session.state || lastIndex(session) > told.until) told = { text: '' }
    status.show(session, told)
    transport.show(session)
    if (!session.steps.length) return
    const cursor = chosen ?? lastIndex(session)
    scrub.show(session, cursor, chosen === null)
    curves.show(session, cursor)
    setText(curves.title, likelihood(stepAt(session, cursor)))
    settings.show(session, cursor)
    drawPictures(cursor)
  }

  function drawPictures(cursor) {
    const count = Math.min(session.batch, MOST_SHOWN)
    const images = Array.from({ length: count }, (_, b) => b)
    const indexOf = (side, b) =>
      side === 'before' ? firstIndex(session) : side === 'best' ? (session.best[b] ?? cursor) : cursor
    const sides = compare.sides()
    const wanted = [cursor, ...sides.flatMap((side) => images.map((b) => indexOf(side, b)))]
    frames.want(wanted.filter((index, i) => i > 0 || sides.includes('current')))
    compare.show({
      count,
      pictureOf: (side, b) => frames.get(indexOf(side, b)),
      currentLabel: chosen === null ? (isOpen(session) ? 'Current' : 'Last') : `Iteration ${cursor}`,
      message: wanted.map((index) => frames.problem(index)).find(Boolean)
    })
  }

  function scrubTo(index) {
    if (!session) return
    chosen = index
    if (!isOpen(session)) handOver(index ?? lastIndex(session), `iteration ${index ?? lastIndex(session)}`)
    draw()
  }

  function scrubToBest() {
    chosen = session.best[0] ?? null
    if (!isOpen(session)) handOver(BEST, 'the best iteration')
    draw()
  }

  function handOver(index, words) {
    const count = pick(index)
    say(count ? `Pick Iteration is set to ${words}.` : '')
  }

  /** Whether the run accepted what it was asked for. */
  async function ask(asked) {
    const target = session.session
    try {
      const answer = await control(target, asked)
      say(answered(asked, answer), { until: answer.after + 1 })
      return true
    } catch (error) {
      say(error.message, { refused: true })
      return false
    } finally {
      draw()
    }
  }

  function say(text, more = {}) {
    told = { text, state: session.state, ...more }
  }

  function show(shown) {
    if (session?.session !== shown.session) {
      frames?.dispose()
      frames = frameLoader((index, signal) => loadFrame(shown.session, index, signal), draw)
      chosen = null
    }
    session = shown
    draw()
  }

  return {
    element,
    show,
    /** Height in CSS pixels below which something would be cut off. */
    leastHeight: () => least,
    dispose() {
      cancelAnimationFrame(drawing)
      drawing = -1
      frames?.dispose()
      watcher.disconnect()
      compare.dispose()
      curves.dispose()
      element.remove()
    }
  }
}

function likelihood(step) {
  const parts = [`P(z) percentile ${percent(Math.min(...step.quantile), RESOLVED)}`]
  if (step.quantile.length > 1) parts[0] += ' (lowest)'
  if (step.step_low?.length) parts.push(`worst step ${percent(Math.min(...step.step_low), RESOLVED)}`)
  parts.push(`saturated ${percent(Math.max(...step.saturated))}`)
  return parts.join(' · ')
}

function answered(asked, { after }) {
  if (asked.stop) return `Stopping; the ${asked.stop} iteration is kept.`
  if (asked.pause) return 'Pausing after this iteration.'
  if (asked.pause === false) return ''
  return `Effective from iteration ${after + 1}.`
}
