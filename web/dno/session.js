/** What the page knows of one run. Plain data, and functions that keep it up to date. */

import { number } from './format.js'

const HEAD = ['node', 'prompt_id', 'workflow', 'planned', 'terms', 'typical', 'batch']
const BASE = ['learning_rate', 'gamma', 'limits']

/** `workflow` is the id of the graph it was queued from; `heard` counts what events told. */
export function newSession(id) {
  return {
    session: id, node: '', prompt_id: '', state: 'running', reason: '', planned: 0,
    terms: [], typical: 0.01, batch: 1, learning_rate: 0, gamma: 0, limits: {},
    workflow: null, heard: 0, steps: [], changes: [], best: []
  }
}

export function isOpen(session) {
  return session.state === 'running' || session.state === 'paused'
}

/** Take over the server's head of a run, and its steps and changes where they are given. */
export function applyState(session, data) {
  if (data.state) Object.assign(session, { state: data.state, reason: data.reason ?? '' })
  for (const name of [...HEAD, ...BASE]) if (data[name] !== undefined) session[name] = data[name]
  for (const step of data.steps ?? []) applyStep(session, step)
  if (data.changes?.length >= session.changes.length) session.changes = data.changes
}

/** Take over one iteration; a repeated one replaces what was there. */
export function applyStep(session, step) {
  const { steps } = session
  const after = steps.findIndex((known) => known.index >= step.index)
  if (after < 0) steps.push(step)
  else steps.splice(after, steps[after].index === step.index ? 1 : 0, step)
  session.planned = step.planned ?? session.planned
  session.batch = step.quantile?.length || session.batch
  const last = steps.at(-1)
  if (last.best?.length) session.best = last.best
}

/** Take over a change that the server accepted. */
export function applyChange(session, { after, learning_rate, gamma, weights, stop }) {
  const values = { learning_rate, gamma, weights, stop }
  const told = Object.entries(values).filter(([, value]) => value !== undefined)
  session.changes.push(Object.fromEntries([['after', after], ...told]))
}

export function firstIndex(session) {
  return session.steps[0]?.index ?? 0
}

export function lastIndex(session) {
  return session.steps.at(-1)?.index ?? 0
}

/** The step of an iteration, or the nearest one. */
export function stepAt(session, index) {
  return session.steps.find((step) => step.index >= index) ?? session.steps.at(-1)
}

/** A term that the run climbs; the others are only watched. */
export function isClimbed(term) {
  return !term.watch && term.weight !== 0
}

/** The settings by hand as they stand after iteration `index`. */
export function settingsAfter(session, index) {
  const { learning_rate, gamma, terms } = session
  const start = {
    learning_rate, gamma, weights: terms.map((term) => (isClimbed(term) ? term.weight : 0))
  }
  return session.changes
    .filter((change) => change.after <= index)
    .sort((a, b) => a.after - b.after)
    .reduce((held, { after, stop, ...values }) => ({ ...held, ...values }), start)
}

/** Changes of settings up to the last iteration, in words: [{after, text}], in order. */
export function changesInWords(session) {
  const afters = [...new Set(session.changes.map((change) => change.after))]
  return afters
    .filter((after) => after <= lastIndex(session))
    .sort((a, b) => a - b)
    .map((after) => ({ after, text: difference(session, after) }))
    .filter(({ text }) => text)
}

function difference(session, after) {
  const old = settingsAfter(session, after - 1)
  const now = settingsAfter(session, after)
  const pairs = [
    ['learning rate', old.learning_rate, now.learning_rate],
    ['gamma', old.gamma, now.gamma],
    ...session.terms.map((term, k) => [`weight of ${term.name}`, old.weights[k], now.weights[k]])
  ]
  return pairs
    .filter(([, a, b]) => a !== b)
    .map(([name, a, b]) => `${name} ${number(a)} to ${number(b)}`)
    .join(', ')
}
