/** The sampler's presets: a chosen one shows on the widgets it sets; a changed widget ends it. */

const CUSTOM = 'custom'

/** Values of widgets by preset, as the server's schema has them. */
function presetsOf(node) {
  return node.constructor?.nodeData?.input?.optional?.preset?.[1]?.dno_presets ?? {}
}

export function followPresets(node) {
  const presets = presetsOf(node)
  const chooser = node.widgets?.find(({ name }) => name === 'preset')
  if (!chooser) return
  const governed = new Set(Object.values(presets).flatMap(Object.keys))
  /** While a preset is being put on the widgets, their changes are its own. */
  let setting = false

  after(chooser, (value) => {
    setting = true
    for (const [name, wanted] of Object.entries(presets[value] ?? {})) {
      const widget = node.widgets.find((each) => each.name === name)
      if (!widget || widget.value === wanted) continue
      widget.value = wanted
      widget.callback?.(wanted)
    }
    setting = false
  })
  for (const widget of node.widgets) {
    if (governed.has(widget.name)) {
      after(widget, (value) => {
        if (!setting && presets[chooser.value] && presets[chooser.value][widget.name] !== value)
          chooser.value = CUSTOM
      })
    }
  }
}

/** Calls `act` with the widget's value after its own callback. */
function after(widget, act) {
  const { callback } = widget
  widget.callback = function (value, ...rest) {
    const result = callback?.call(this, value, ...rest)
    act(widget.value)
    return result
  }
}
