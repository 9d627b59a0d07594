/** Everything that goes over the wire: events of the server, and what is asked of it. */

import { api } from '../../../scripts/api.js'

/** Call handlers[name](detail) for every event; returns a function that ends it. */
export function listen(handlers) {
  const listeners = Object.entries(handlers).map(([name, handle]) => {
    const listener = ({ detail }) => handle(detail)
    api.addEventListener(name, listener)
    return [name, listener]
  })
  return () => listeners.forEach(([name, listener]) => api.removeEventListener(name, listener))
}

/** The id under which the server knows this page; it comes with the first message. */
export function clientId() {
  if (api.clientId) return Promise.resolve(api.clientId)
  return new Promise((resolve) => {
    const stop = listen({
      status() {
        if (!api.clientId) return
        stop()
        resolve(api.clientId)
      }
    })
  })
}

/** Tell the server that this page shows pictures itself, so that it sends no second preview. */
export async function announcePanel() {
  await post('/dno/panel', { client: await clientId() })
}

export async function listSessions() {
  const client = encodeURIComponent(await clientId())
  const response = await api.fetchApi(`/dno/sessions?client=${client}`)
  return response.ok ? (await response.json()).sessions : []
}

/** All of a run, or null if the server does not know it (any more). */
export async function loadSession(session) {
  const response = await api.fetchApi(`/dno/sessions/${encodeURIComponent(session)}`)
  return response.ok ? response.json() : null
}

/** The picture of an iteration; an Error with `gone` set where there will be none. */
export async function loadFrame(session, index, signal) {
  const path = `/dno/sessions/${encodeURIComponent(session)}/frames/${index}`
  const response = await api.fetchApi(path, { signal })
  if (response.ok) return createImageBitmap(await response.blob())
  throw Object.assign(new Error(await reason(response)), { gone: response.status === 404 })
}

/** Ask the run for something; what the server made of it. An Error with its words if refused. */
export function control(session, asked) {
  return post(`/dno/sessions/${encodeURIComponent(session)}/control`, asked)
}

async function post(path, body) {
  const response = await api.fetchApi(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body)
  })
  if (!response.ok) throw new Error(await reason(response))
  return response.json()
}

async function reason(response) {
  try {
    return (await response.json()).error
  } catch {
    return `The server answered ${response.status}. Look at its log.`
  }
}
