/** The curves: every term in its own range, P(z)'s percentile, and where settings were changed. */

import { el, svg } from './dom.js'
import { mean } from './format.js'
import { changesInWords, firstIndex, lastIndex } from './session.js'

const SCORE_HEIGHT = 96
const P_HEIGHT = 72
const SIDE = 6
/** Quantiles below RESOLVED rest on few simulated draws; they are drawn at FLOOR. */
export const RESOLVED = 0.001
const FLOOR = RESOLVED / 2
const P_TICKS = [[0.1, '10 %'], [0.01, '1 %'], [RESOLVED, '0.1 %']]

/** `scrub(index)` is called when an iteration is pointed at with the button down. */
export function curvesView(scrub) {
  const scores = svg('svg', { class: 'dno-plot', height: SCORE_HEIGHT, role: 'img' })
  const likely = svg('svg', { class: 'dno-plot', height: P_HEIGHT, role: 'img' })
  const element = el('div', { class: 'dno-curves' }, scores, el('div', { class: 'dno-plot-title' }), likely)
  let shown = null
  let x = null

  const resized = new ResizeObserver(redraw)
  resized.observe(element)
  for (const plot of [scores, likely]) pointing(plot, (share) => x && scrub(x.at(share)))

  function redraw() {
    const width = element.clientWidth
    if (!shown || width < 2 * SIDE + 2 || !shown.session.steps.length) return
    const { session, cursor } = shown
    x = horizontal(session, width)
    const common = [...marks(session, x), cursorLine(x.of(cursor))]
    drawn(scores, width, SCORE_HEIGHT, [...termCurves(session, x), ...common])
    drawn(likely, width, P_HEIGHT, [...percentile(session, x), ...common.map((each) => each.cloneNode(true))])
    scores.setAttribute('aria-label', `Scores of ${session.steps.length} iterations`)
    likely.setAttribute('aria-label', 'Percentile of P(z); the band is the typical range')
  }

  return {
    element,
    title: element.children[1],
    show(session, cursor) {
      shown = { session, cursor }
      redraw()
    },
    dispose: () => resized.disconnect()
  }
}

function drawn(plot, width, height, children) {
  plot.setAttribute('viewBox', `0 0 ${width} ${height}`)
  plot.replaceChildren(...children)
}

function pointing(plot, pointed) {
  const follow = (event) => {
    const box = plot.getBoundingClientRect()
    pointed((event.clientX - box.left) / box.width)
  }
  plot.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return
    plot.setPointerCapture(event.pointerId)
    follow(event)
  })
  plot.addEventListener('pointermove', (event) => {
    if (plot.hasPointerCapture(event.pointerId)) follow(event)
  })
}

/** Iterations across the width: all that are planned while it runs, else those that are there. */
function horizontal(session, width) {
  const first = firstIndex(session)
  const open = session.state === 'running' || session.state === 'paused'
  const last = Math.max(open ? session.planned : 0, lastIndex(session), first + 1)
  const room = width - 2 * SIDE
  return {
    of: (index) => SIDE + (room * (index - first)) / (last - first),
    at(share) {
      const index = Math.round(first + ((share * width - SIDE) / room) * (last - first))
      return Math.min(Math.max(index, first), lastIndex(session))
    },
    width
  }
}

function termCurves(session, x) {
  const { steps, terms } = session
  const grid = [0.25, 0.5, 0.75].map((share) =>
    svg('line', { class: 'dno-grid', x1: 0, x2: x.width, y1: share * SCORE_HEIGHT, y2: share * SCORE_HEIGHT })
  )
  const curves = terms.flatMap((term, k) => {
    const rows = steps.map((step) => step.scores[k])
    const known = rows.flat().filter((value) => value != null)
    const low = Math.min(...known)
    const high = Math.max(...known, low + 0.05 * term.scale, low + 1e-12)
    const y = (value) => 7 + (SCORE_HEIGHT - 14) * (1 - (value - low) / (high - low))
    const look = `dno-curve dno-colour-${k % 6}${term.watch ? ' dno-watched' : ''}`
    const thin = rows[0].length > 1 ? rows[0].map((_, b) => line(steps, rows.map((row) => row[b]), x, y, `${look} dno-thin`)) : []
    return [...thin, line(steps, rows.map(mean), x, y, look), ...bestDots(session, k, x, y, look)]
  })
  return [...grid, ...curves]
}

function bestDots(session, k, x, y, look) {
  return session.best.flatMap((index, b) => {
    const value = session.steps.find((step) => step.index === index)?.scores[k][b]
    return value == null ? [] : [svg('circle', { class: `${look} dno-dot`, cx: x.of(index), cy: y(value), r: 2.5 })]
  })
}

function percentile(session, x) {
  const bottom = Math.log10(FLOOR) - 0.1
  const y = (share) => 3 + (P_HEIGHT - 6) * (1 - (Math.log10(Math.max(share, FLOOR)) - bottom) / -bottom)
  const edge = y(session.typical)
  const rows = session.steps.map((step) => step.quantile)
  const worst = session.steps.map(({ step_low: low }) => (low?.length ? Math.min(...low) : NaN))
  const look = 'dno-curve dno-likely'
  return [
    svg('rect', { class: 'dno-band', x: 0, y: 0, width: x.width, height: edge }),
    svg('rect', { class: 'dno-unlikely', x: 0, y: edge, width: x.width, height: P_HEIGHT - edge }),
    ...P_TICKS.flatMap(([share, label]) => [
      svg('line', { class: 'dno-grid', x1: 0, x2: x.width, y1: y(share), y2: y(share) }),
      svg('text', { class: 'dno-tick', x: 2, y: y(share) - 2 }, label)
    ]),
    line(session.steps, worst, x, y, 'dno-curve dno-worst'),
    ...(rows[0].length > 1 ? rows[0].map((_, b) => line(session.steps, rows.map((row) => row[b]), x, y, `${look} dno-thin`)) : []),
    line(session.steps, rows.map(mean), x, y, look)
  ]
}

/** A line through the known values; it breaks where one is missing. */
function line(steps, values, x, y, look) {
  let pen = 'M'
  const path = values.map((value, i) => {
    if (value == null || !Number.isFinite(value)) {
      pen = 'M'
      return ''
    }
    const point = `${pen}${x.of(steps[i].index).toFixed(1)} ${y(value).toFixed(1)}`
    pen = 'L'
    return point
  })
  return svg('path', { class: look, d: path.join('') })
}

function marks(session, x) {
  return changesInWords(session).map(({ after, text }) => {
    const at = x.of(after + 1)
    return svg(
      'g', { class: 'dno-mark' },
      svg('line', { x1: at, x2: at, y1: 0, y2: 400 }),
      svg('path', { d: `M${at - 4} 0h8l-4 6z` }),
      svg('title', {}, `From iteration ${after + 1}: ${text}`)
    )
  })
}

function cursorLine(at) {
  return svg('line', { class: 'dno-cursor', x1: at, x2: at, y1: 0, y2: 400 })
}
