/** The legend of the curves and, beside each climbed term, its weight; learning rate and gamma. */

import { el, setText } from './dom.js'
import { mean, number, score } from './format.js'
import { isClimbed, isOpen, lastIndex, settingsAfter, stepAt } from './session.js'
import { linear, ratio, valueControl } from './value_control.js'

const UNLIMITED = [0, 1000]
const WEIGHT_HINT =
  'Weight of this reward from the next iteration on. Raise it when the reward should count more, ' +
  'lower it when it is overdone; 0.1 to 2 is usual.'
const RATE_HINT =
  'Learning rate from the next iteration on. Raise it when the curves creep, lower it when they ' +
  'jump or P(z) falls; 0.005 to 0.05 is usual.'
const GAMMA_HINT =
  'Strength of the probability regularizer from the next iteration on. Raise it when P(z) falls ' +
  'below its typical range; 0 switches it off.'

/** `ask(values)` sends changed settings to the run, and tells whether it took them. */
export function settingsView(ask) {
  const element = el('div', { class: 'dno-settings' })
  let built = null
  let rows = []
  let rate = null
  let gamma = null

  function build(session) {
    const { limits, terms } = session
    const weight = limits.weight ?? UNLIMITED
    rows = terms.map((term, k) => termRow(term, k, weight, (value) => setWeight(session, k, value)))
    rate = valueControl({
      label: 'Learning rate', title: RATE_HINT, limits: limits.learning_rate ?? UNLIMITED,
      scale: ratio((session.learning_rate || 0.01) / 10, (session.learning_rate || 0.01) * 10),
      chosen: (value) => ask({ learning_rate: value })
    })
    gamma = valueControl({
      label: 'Regularizer strength gamma', title: GAMMA_HINT, limits: limits.gamma ?? UNLIMITED,
      scale: linear(0, 4 * session.gamma || 1), chosen: (value) => ask({ gamma: value })
    })
    element.replaceChildren(
      ...rows.flatMap((row) => row.cells),
      ...plainRow('learning rate', RATE_HINT, rate),
      ...plainRow('regularizer, gamma', GAMMA_HINT, gamma)
    )
  }

  function setWeight(session, k, value) {
    const { weights } = settingsAfter(session, lastIndex(session) + 1)
    return ask({ weights: weights.map((weight, i) => (i === k ? value : weight)) })
  }

  return {
    element,
    /** Scores of iteration `cursor`, settings as they stand now. */
    show(session, cursor) {
      const key = [session.session, ...session.terms.map((term) => term.name)].join()
      if (built !== key) {
        build(session)
        built = key
      }
      const step = stepAt(session, cursor)
      const now = settingsAfter(session, lastIndex(session) + (isOpen(session) ? 1 : 0))
      const enabled = isOpen(session)
      rows.forEach(({ value, control }, k) => {
        const term = session.terms[k]
        setText(value, score(mean(step?.scores[k] ?? []), term.scale))
        value.title = `${term.unit}${step?.scores[k].length > 1 ? ', mean of the batch' : ''}`
        control?.update(now.weights[k], enabled)
      })
      rate.update(now.learning_rate, enabled)
      gamma.update(now.gamma, enabled)
    }
  }
}

function termRow(term, k, limits, chosen) {
  const value = el('output', { class: 'dno-value' })
  const swatch = el('span', { class: `dno-swatch dno-colour-${k % 6}${term.watch ? ' dno-watched' : ''}` })
  const name = el('span', { class: 'dno-name', title: `${term.name}: ${aim(term)}` }, term.name)
  if (!isClimbed(term)) {
    const watched = el('span', { class: 'dno-role' }, 'watched, not optimized')
    return { value, cells: [swatch, name, value, watched] }
  }
  const scale = linear(0, Math.min(Math.max(2, 2 * term.weight), limits[1]))
  const label = `Weight of ${term.name}`
  const control = valueControl({ label, title: WEIGHT_HINT, scale, limits, chosen })
  return { value, control, cells: [swatch, name, value, control.slider, control.field] }
}

function plainRow(text, title, control) {
  return [el('span', { class: 'dno-name dno-wide', title }, text), control.slider, control.field]
}

function aim(term) {
  if (term.watch) return 'watched, not optimized'
  return term.goal === 'target' ? `target ${number(term.target)}` : term.goal
}
