/** One value as a number field and a slider that move together. */

import { el } from './dom.js'
import { number } from './format.js'

const STOPS = 200

/** Slider positions 0..1 to values and back; linear from `low`, or in equal ratios. */
export function linear(low, high) {
  return { to: (p) => low + p * (high - low), from: (v) => (v - low) / (high - low) }
}

export function ratio(low, high) {
  return { to: (p) => low * (high / low) ** p, from: (v) => Math.log(v / low) / Math.log(high / low) }
}

/**
 * `chosen(value)` is called once a value is settled on: slider let go, Enter, field left. It
 * tells whether the value was taken; until it has, the control keeps the value.
 */
export function valueControl({ label, title, scale, limits, chosen }) {
  const [low, high] = limits
  const slider = el('input', {
    type: 'range', min: 0, max: STOPS, 'aria-label': label, title,
    oninput: () => write(field, fromSlider()),
    onchange: () => settle(fromSlider())
  })
  const field = el('input', {
    type: 'number', min: low, max: high, step: 'any', 'aria-label': `${label}, number`, title,
    onchange: () => settle(field.valueAsNumber)
  })
  let held = NaN
  let waiting = 0

  function fromSlider() {
    return Number(clamp(scale.to(slider.value / STOPS)).toPrecision(3))
  }

  function clamp(value) {
    return Math.min(Math.max(value, low), high)
  }

  async function settle(value) {
    if (!Number.isFinite(value)) return show(held)
    const before = held
    const wanted = clamp(value)
    show(wanted)
    if (wanted === before) return
    waiting++
    if (!(await chosen(wanted))) show(before)
    waiting--
  }

  function show(value) {
    held = value
    write(field, value)
    const position = value > 0 || scale.from(0) > -Infinity ? scale.from(value) : 0
    slider.value = Math.round(STOPS * Math.min(Math.max(position, 0), 1))
    slider.setAttribute('aria-valuetext', number(value))
  }

  return {
    slider,
    field,
    /** Show the run's value, unless the user is busy with this control. */
    update(value, enabled) {
      slider.disabled = field.disabled = !enabled
      const typing = field === document.activeElement && field.value !== written(held)
      const busy = waiting > 0 || slider.matches(':active') || typing
      if (!busy && value !== held) show(value)
    }
  }
}

function write(field, value) {
  if (field.value !== written(value)) field.value = written(value)
}

function written(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(6))) : ''
}
