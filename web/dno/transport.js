/** Pause, resume, and the two ways to stop. */

import { el, setHidden, setText } from './dom.js'
import { isOpen } from './session.js'

/** `ask(values)` sends what was asked to the run. */
export function transportView(ask) {
  const pause = button('Pause', () => ask({ pause: pause.dataset.paused === undefined }))
  const best = button('Stop, keep best', () => ask({ stop: 'best' }))
  const current = button('Stop, keep current', () => ask({ stop: 'current' }))
  best.title = 'End the run now. The node returns the best iteration and the workflow goes on.'
  current.title = 'End the run now. The node returns the last iteration and the workflow goes on.'
  const element = el('div', { class: 'dno-transport' }, pause, best, current)

  return {
    element,
    show(session) {
      const paused = session.state === 'paused'
      setHidden(element, !isOpen(session))
      setText(pause, paused ? 'Resume' : 'Pause')
      pause.toggleAttribute('data-paused', paused)
      pause.title = paused
        ? 'Go on with the next iteration.'
        : 'Wait after this iteration, for as long as you like. Weights can be changed meanwhile.'
    }
  }
}

function button(text, onclick) {
  return el('button', { type: 'button', onclick }, text)
}
