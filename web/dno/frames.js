/**
 * The pictures of a run, fetched one at a time: while one is on its way, only the newest wish
 * counts, so that a slow connection skips pictures instead of falling behind.
 */

/** Pixels kept beyond what is shown; four bytes each. */
const PIXELS_KEPT = 24e6

/** `load(index, signal)` gives an ImageBitmap; `arrived` is called after each answer. */
export function frameLoader(load, arrived) {
  const pictures = new Map()
  const gone = new Map()
  const aborting = new AbortController()
  let wanted = []
  let busy = false

  async function next() {
    const index = wanted.find((each) => !pictures.has(each) && !gone.has(each))
    if (busy || index === undefined || aborting.signal.aborted) return
    busy = true
    let again = true
    try {
      const picture = await load(index, aborting.signal)
      pictures.set(index, picture)
      if (aborting.signal.aborted) forget(index)
      else dropOld()
    } catch (error) {
      // Without an answer of the server, the next wish tries again.
      if (error.gone) gone.set(index, error.message)
      else again = false
    }
    busy = false
    if (aborting.signal.aborted) return
    arrived()
    if (again) next()
  }

  function dropOld() {
    const sizes = [...pictures.values()].map((picture) => picture.width * picture.height)
    let over = sizes.reduce((sum, size) => sum + size, 0) - PIXELS_KEPT
    for (const [index, picture] of [...pictures]) {
      if (over <= 0) return
      if (wanted.includes(index)) continue
      over -= picture.width * picture.height
      forget(index)
    }
  }

  function forget(index) {
    pictures.get(index)?.close()
    pictures.delete(index)
  }

  return {
    /** What should be shown now, the most urgent first. */
    want(indices) {
      wanted = [...new Set(indices)]
      next()
    },
    get: (index) => pictures.get(index),
    /** Why there is no picture of that iteration; undefined while it may come. */
    problem: (index) => gone.get(index),
    dispose() {
      aborting.abort()
      for (const index of [...pictures.keys()]) forget(index)
    }
  }
}
