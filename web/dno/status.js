/** What is said about the run: its state, time and memory, warnings, and the last answer. */

import { el, setHidden, setText } from './dom.js'
import { duration, memory } from './format.js'
import { isOpen } from './session.js'

const WORDS = {
  running: 'Running', paused: 'Paused', done: 'Done', cancelled: 'Cancelled', failed: 'Failed'
}
const IDLE = 'Picture, curves and controls appear here.'

export function statusView() {
  const light = el('span', { class: 'dno-light' })
  const state = el('span', { class: 'dno-state', role: 'status' }, IDLE)
  const numbers = el('span', { class: 'dno-numbers' })
  const element = el('div', { class: 'dno-status' }, light, state, numbers)
  const warnings = el('div', { class: 'dno-warnings', role: 'alert', hidden: true })
  const notice = el('div', { class: 'dno-notice', role: 'status', hidden: true })

  return {
    element,
    warnings,
    notice,
    show(session, told) {
      const step = session.steps.at(-1)
      const texts = step?.warnings ?? []
      light.dataset.state = texts.length && session.state !== 'failed' ? 'warned' : session.state
      setText(state, headline(session))
      setText(numbers, step ? progress(session, step) : '')
      setText(warnings, texts.join('\n'))
      setHidden(warnings, !texts.length)
      setText(notice, told.text)
      setHidden(notice, !told.text)
      notice.classList.toggle('dno-refused', !!told.refused)
    }
  }
}

function headline({ state, reason }) {
  const word = WORDS[state]
  if (!reason || reason.startsWith(word)) return reason || word
  return `${word}: ${reason}`
}

function progress(session, step) {
  const count = `${step.index} / ${session.planned}`
  if (!isOpen(session)) {
    const seconds = session.steps.reduce((sum, each) => sum + each.seconds, 0)
    return `iteration ${count} · ${duration(seconds)}`
  }
  return [
    `iteration ${count}`,
    `${duration(step.seconds)} each`,
    step.seconds_left == null ? '' : `${duration(step.seconds_left)} left`,
    step.memory ? memory(step.memory) : ''
  ].filter(Boolean).join(' · ')
}
