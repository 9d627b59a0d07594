/** All runs that this page knows of, kept up to date from the server's events. */

import { applyChange, applyState, applyStep, isOpen, newSession } from './session.js'

/** Ended runs beyond this number are forgotten, the oldest first. */
const ENDED_KEPT = 8

/**
 * `protocol` lists and loads sessions; `changed` is called with a session whenever something in
 * it is new.
 */
export function sessionStore(protocol, changed) {
  const sessions = new Map()

  /** The record of a run; one that is new here is also loaded, for what happened before. */
  function known(id) {
    let session = sessions.get(id)
    if (!session) {
      session = newSession(id)
      sessions.set(id, session)
      forgetOld()
      load(session)
    }
    return session
  }

  function forgetOld() {
    const ended = [...sessions.values()].filter((session) => !isOpen(session))
    for (const { session } of ended.slice(0, Math.max(ended.length - ENDED_KEPT, 0))) {
      sessions.delete(session)
    }
  }

  async function load(session) {
    const { heard } = session
    const data = await protocol.loadSession(session.session)
    if (data && session.heard !== heard) delete data.state // events have told more since
    if (data) applyState(session, data)
    else if (isOpen(session)) end(session, 'failed', 'The server no longer knows this run.')
    changed(session)
  }

  function end(session, state, reason) {
    session.state = state
    session.reason = reason
    changed(session)
  }

  const handlers = {
    'dno.state'(data) {
      const session = known(data.session)
      session.heard++
      applyState(session, data)
      changed(session)
    },
    'dno.step'(data) {
      const session = known(data.session)
      if (data.node) session.node = data.node
      applyStep(session, data)
      changed(session)
    },
    'dno.changed'(data) {
      const session = known(data.session)
      applyChange(session, data)
      changed(session)
    }
  }

  return {
    handlers,

    /** All sessions, oldest first. */
    all: () => [...sessions.values()],

    /** Ask the server for this page's runs: after a reload, and after a lost connection. */
    async restore() {
      const listed = await protocol.listSessions()
      const ids = new Set(listed.map(({ session }) => session))
      for (const session of sessions.values()) {
        if (isOpen(session) && !ids.has(session.session)) {
          end(session, 'failed', 'The server was restarted.')
        }
      }
      for (const { session: id } of listed) {
        if (sessions.has(id)) load(sessions.get(id))
        else known(id)
      }
    },

    /** The prompt has ended although its run did not say so. */
    promptEnded(promptId, state, reason) {
      for (const session of sessions.values()) {
        if (session.prompt_id === promptId && isOpen(session)) end(session, state, reason)
      }
    }
  }
}
