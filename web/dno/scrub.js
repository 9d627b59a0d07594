/** The slider through the iterations. At its end it follows the run. */

import { el, setHidden, setText } from './dom.js'
import { firstIndex, isOpen, lastIndex } from './session.js'

/** `chosen(index)`; null to follow the run again. `best()` goes to the best iteration. */
export function scrubView(chosen, best) {
  const slider = el('input', {
    type: 'range', 'aria-label': 'Iteration', title: 'Go through the iterations of this run.',
    oninput: () => {
      const atEnd = slider.valueAsNumber === Number(slider.max)
      chosen(atEnd && slider.dataset.open ? null : slider.valueAsNumber)
    }
  })
  const label = el('output', { class: 'dno-value' })
  const toBest = el(
    'button', { type: 'button', title: 'Show the best iteration.', onclick: best }, 'Best'
  )
  const toLast = el(
    'button', { type: 'button', onclick: () => chosen(null) }, 'Last'
  )
  const element = el('div', { class: 'dno-scrub' }, slider, label, toBest, toLast)

  return {
    element,
    show(session, cursor, follows) {
      setHidden(element, session.steps.length < 2)
      slider.min = firstIndex(session)
      slider.max = lastIndex(session)
      slider.value = cursor
      slider.toggleAttribute('data-open', isOpen(session))
      slider.setAttribute('aria-valuetext', `Iteration ${cursor} of ${lastIndex(session)}`)
      setText(label, `${cursor}`)
      setText(toLast, isOpen(session) ? 'Live' : 'Last')
      toLast.title = isOpen(session) ? 'Follow the run again.' : 'Show the last iteration.'
      toLast.disabled = follows
      toBest.disabled = !session.best.length
    }
  }
}
