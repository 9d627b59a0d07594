/** Two pictures of every image of the batch on top of each other, parted by a line to drag. */

import { el, setHidden, setText } from './dom.js'

const SIDES = [['before', 'Before'], ['best', 'Best'], ['current', 'Current']]
const KEY_STEPS = { ArrowLeft: -0.05, ArrowRight: 0.05, PageDown: -0.2, PageUp: 0.2, Home: -1, End: 1 }
const GAP = 4

/** Columns and cell size that show `count` pictures of this shape largest in the given room. */
export function fit(count, aspect, width, height) {
  let best = { columns: 1, width: 0, height: 0 }
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns)
    const room = (width - GAP * (columns - 1)) / columns
    const cell = Math.max(Math.min(room, aspect * ((height - GAP * (rows - 1)) / rows)), 0)
    if (cell > best.width) best = { columns, width: cell, height: cell / aspect }
  }
  return best
}

/** `changed` is called when another picture is chosen for a side. */
export function compareView(changed) {
  const left = sideChoice('Picture on the left', 'before', changed)
  const right = sideChoice('Picture on the right', 'current', changed)
  const grid = el('div', { class: 'dno-slots' })
  const note = el('div', { class: 'dno-picture-note', role: 'note', hidden: true })
  const element = el(
    'div', { class: 'dno-stage' }, grid, note,
    el('div', { class: 'dno-sides' }, left, right)
  )
  let slots = []
  let aspect = 1
  let split = 0.5

  const resized = new ResizeObserver(place)
  resized.observe(element)

  function place() {
    const cell = fit(slots.length || 1, aspect, element.clientWidth, element.clientHeight)
    grid.style.gridTemplateColumns = `repeat(${cell.columns}, ${Math.floor(cell.width)}px)`
    grid.style.gridAutoRows = `${Math.floor(cell.height)}px`
  }

  function moveTo(fraction) {
    split = Math.min(Math.max(fraction, 0), 1)
    element.style.setProperty('--dno-split', `${100 * split}%`)
    const handle = slots[0]?.handle
    handle?.setAttribute('aria-valuenow', Math.round(100 * split))
    handle?.setAttribute('aria-valuetext', `${Math.round(100 * split)} % of the left picture`)
  }

  function setCount(count) {
    if (slots.length === count) return
    slots = Array.from({ length: count }, (_, i) => slot(i === 0, (f) => moveTo(f), () => split))
    grid.replaceChildren(...slots.map((each) => each.element))
    moveTo(split)
    place()
  }

  return {
    element,

    /** What each side shows: "before", "best" or "current". */
    sides: () => [left.value, right.value],

    /**
     * Draw. `pictureOf(side, b)` gives [ImageBitmap of the strip, or undefined]; a side without
     * its picture yet keeps what it shows. `currentLabel` names the iteration scrubbed to.
     */
    show({ count, pictureOf, currentLabel, message }) {
      setCount(count)
      setText(left.options[2], currentLabel)
      setText(right.options[2], currentLabel)
      setText(note, message ?? '')
      setHidden(note, !message)
      const [a, b] = [left.value, right.value]
      slots.forEach(({ leftCanvas, rightCanvas }, i) => {
        name(leftCanvas, left, i)
        name(rightCanvas, right, i)
        const shape = draw(leftCanvas, pictureOf(a, i), i, count) ?? draw(rightCanvas, undefined)
        aspect = draw(rightCanvas, pictureOf(b, i), i, count) ?? shape ?? aspect
      })
      place()
    },

    dispose: () => resized.disconnect()
  }
}

/** What a screen reader says of the picture. */
function name(canvas, side, i) {
  canvas.setAttribute('aria-label', `Image ${i + 1}: ${side.selectedOptions[0].textContent}`)
}

function sideChoice(label, value, changed) {
  const options = SIDES.map(([name, text]) => el('option', { value: name }, text))
  const choice = el('select', { 'aria-label': label, title: label, onchange: changed }, ...options)
  choice.value = value
  return choice
}

/** One image of the batch: the right picture, the left one clipped over it, and the line. */
function slot(isFirst, moveTo, split) {
  const leftCanvas = el('canvas', { class: 'dno-left', role: 'img' })
  const rightCanvas = el('canvas', { class: 'dno-right', role: 'img' })
  const handle = el('div', { class: 'dno-divider' })
  const element = el('div', { class: 'dno-slot' }, rightCanvas, leftCanvas, handle)
  if (isFirst) {
    for (const [name, value] of Object.entries({
      role: 'slider', tabindex: 0, 'aria-valuemin': 0, 'aria-valuemax': 100,
      'aria-label': 'Compare: how much of the left picture is shown'
    })) handle.setAttribute(name, value)
    handle.addEventListener('keydown', (event) => {
      const step = KEY_STEPS[event.key]
      if (step === undefined) return
      event.preventDefault()
      event.stopPropagation()
      moveTo(split() + step)
    })
  }
  const follow = (event) => {
    const box = element.getBoundingClientRect()
    moveTo((event.clientX - box.left) / box.width)
  }
  element.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return
    element.setPointerCapture(event.pointerId)
    follow(event)
  })
  element.addEventListener('pointermove', (event) => {
    if (element.hasPointerCapture(event.pointerId)) follow(event)
  })
  return { element, leftCanvas, rightCanvas, handle }
}

/** Picture i of a strip of `count` onto the canvas; returns width / height, if there is one. */
function draw(canvas, strip, i, count) {
  if (!strip) return undefined
  const width = Math.floor(strip.width / count)
  if (canvas.width !== width || canvas.height !== strip.height) {
    canvas.width = width
    canvas.height = strip.height
  }
  canvas.getContext('2d').drawImage(strip, i * width, 0, width, strip.height, 0, 0, width, strip.height)
  return width / strip.height
}
