/** How high the panel must be at least, for the canvas renderer, which gives it its height. */

const known = new WeakMap()

/** The height in CSS pixels; the last known one while the panel is not on the page. */
export function leastHeight(panel) {
  if (panel.clientWidth > 0) known.set(panel, Math.ceil(natural(panel)))
  return known.get(panel) ?? 24
}

/** An element's height with everything that grows at its least. */
function natural(box) {
  const style = getComputedStyle(box)
  if (style.display === 'none') return 0
  if (box.classList.contains('dno-stage')) return parseFloat(style.minHeight)
  if (!box.matches('.dno-panel, .dno-body, .dno-look')) return box.offsetHeight
  const heights = [...box.children].map(natural).filter((height) => height > 0)
  const padding = parseFloat(style.paddingTop) + parseFloat(style.paddingBottom)
  if (style.flexDirection === 'row') return padding + Math.max(...heights)
  const gaps = (parseFloat(style.rowGap) || 0) * Math.max(heights.length - 1, 0)
  return padding + gaps + heights.reduce((sum, height) => sum + height, 0)
}
