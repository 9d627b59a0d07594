/** Numbers and times as the panel writes them. */

/** About four digits, without an exponent where that reads well; "-" for no number. */
export function number(value) {
  if (value == null || !Number.isFinite(value)) return '-'
  const size = Math.abs(value)
  if (size >= 1e6 || (size > 0 && size < 1e-4)) return value.toExponential(2)
  return String(Number(value.toPrecision(4)))
}

/** A score, with as many decimals as its spread deserves, so that it does not jump about. */
export function score(value, scale) {
  if (value == null || !Number.isFinite(value)) return '-'
  const wanted = scale > 0 ? Math.ceil(-Math.log10(scale / 20)) : 3
  return value.toFixed(Math.min(Math.max(wanted, 0), 6))
}

/** A share as percent: 43 %, 4.3 %, 0.43 %, or below what can be told apart. */
export function percent(share, resolved = 0) {
  if (share == null || !Number.isFinite(share)) return '-'
  if (share < resolved) return `< ${number(100 * resolved)} %`
  const value = 100 * share
  return `${value >= 9.95 ? value.toFixed(0) : value.toFixed(value >= 0.095 || !value ? 1 : 2)} %`
}

/** Seconds in words: 0.42 s, 63 s, 4 min 12 s, 2 h 5 min. */
export function duration(seconds) {
  if (seconds < 0.995) return `${seconds.toFixed(2)} s`
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`
  const whole = Math.round(seconds)
  if (whole < 120) return `${whole} s`
  if (whole < 7200) return `${Math.floor(whole / 60)} min ${whole % 60} s`
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`
}

/** Used of total bytes, in gigabytes. */
export function memory({ used, total }) {
  const giga = (bytes) => (bytes / 2 ** 30).toFixed(1)
  return `${giga(used)} of ${giga(total)} GB`
}

/** Mean of the numbers among the values; NaN if there is none. */
export function mean(values) {
  const known = values.filter((value) => value != null && Number.isFinite(value))
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : NaN
}
