/** How high the panel must be at least, for the canvas renderer, which gives it its height. */

/** The height in CSS pixels, with everything that grows at its least; null while not on the page. */
export function leastHeight(panel) {
  return panel.clientWidth > 0 ? Math.ceil(natural(panel)) : null
}

function natural(box) {
  const style = getComputedStyle(box)
  if (style.display === 'none') return 0
  if (box.classList.contains('dno-stage')) return parseFloat(style.minHeight)
  if (!box.matches('.dno-panel, .dno-body, .dno-look')) return box.offsetHeight
  const heights = [...box.children].map(natural).filter((height) => height > 0)
  if (style.flexDirection === 'row') return Math.max(...heights)
  const gaps = (parseFloat(style.rowGap) || 0) * Math.max(heights.length - 1, 0)
  return gaps + heights.reduce((sum, height) => sum + height, 0)
}
