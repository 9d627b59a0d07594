/** On the canvas renderer: wheel and middle button over the panel move the canvas, as elsewhere. */

const MIDDLE = 1
const MIDDLE_HELD = 4

export function passGesturesToCanvas(element, app) {
  const byCanvas = () => !window.LiteGraph?.vueNodesMode
  element.addEventListener('wheel', (event) => {
    if (!byCanvas()) return
    event.preventDefault()
    app.canvas.processMouseWheel(event)
  }, { passive: false })
  element.addEventListener('pointerdown', (event) => {
    if (byCanvas() && event.button === MIDDLE) app.canvas.processMouseDown(event)
  })
  element.addEventListener('pointermove', (event) => {
    if (byCanvas() && event.buttons & MIDDLE_HELD) app.canvas.processMouseMove(event)
  })
  element.addEventListener('pointerup', (event) => {
    if (byCanvas() && event.button === MIDDLE) app.canvas.processMouseUp(event)
  })
}
