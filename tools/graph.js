// Builds a graph in ComfyUI's own page from a description, and returns what the page makes of it.
async ({ nodes, groups }) => {
  const app = window.app, LiteGraph = window.LiteGraph
  const MARGIN = 20, HEADINGS = 76 // a node's own heading lies above its pos
  app.graph.clear()
  const made = {}
  const settle = () => new Promise((done) => setTimeout(done, 60))
  for (const wanted of nodes) {
    const node = LiteGraph.createNode(wanted.type)
    if (!node) throw new Error('unknown node type ' + wanted.type)
    node.id = wanted.id
    app.graph.add(node)
    node.pos = wanted.pos
    if (wanted.title) node.title = wanted.title
    if (wanted.models.length > 0) node.properties.models = wanted.models
    await settle()
    for (const [name, value] of Object.entries(wanted.widgets)) {
      const widget = (node.widgets || []).find((w) => w.name === name)
      if (!widget) {
        const known = (node.widgets || []).map((w) => w.name).join(', ')
        throw new Error(`${wanted.type} has no widget ${name}, only ${known}`)
      }
      widget.value = value
      if (widget.callback) widget.callback(value, app.canvas, node)
      await settle() // a dynamic combo makes its inputs now
    }
    made[wanted.id] = node
  }
  for (const wanted of nodes) {
    for (const [name, [origin, output]] of Object.entries(wanted.inputs)) {
      const node = made[wanted.id]
      const slot = node.inputs.findIndex((i) => i.name === name)
      const from = made[origin].outputs.findIndex((o) => o.name === output || o.label === output)
      if (slot < 0 || from < 0) {
        const known = node.inputs.map((i) => i.name).join(', ')
        const outs = made[origin].outputs.map((o) => o.name).join(', ')
        throw new Error(`cannot link ${output} (${outs}) to ${wanted.type}.${name} (${known})`)
      }
      if (!made[origin].connect(from, node, slot)) throw new Error('refused link to ' + name)
      await settle() // an autogrow input makes its next socket now
    }
  }
  for (const wanted of nodes) {
    const node = made[wanted.id], least = node.computeSize()
    node.setSize([Math.max(wanted.size[0], least[0]), Math.max(wanted.size[1], least[1])])
  }
  for (const { title, members, color } of groups) {
    const group = new LiteGraph.LGraphGroup(title)
    const boxes = members.map((id) => [...made[id].pos, ...made[id].size])
    const left = Math.min(...boxes.map(([x]) => x)), right = Math.max(...boxes.map(([x, , w]) => x + w))
    const top = Math.min(...boxes.map(([, y]) => y)), end = Math.max(...boxes.map(([, y, , h]) => y + h))
    group.pos = [left - MARGIN, top - HEADINGS]
    group.size = [right - left + 2 * MARGIN, end - top + HEADINGS + MARGIN]
    group.color = color
    app.graph.add(group)
  }
  await settle()
  const { output, workflow } = await app.graphToPrompt()
  return { api: output, ui: workflow }
}
