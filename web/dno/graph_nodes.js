/** Nodes of ComfyUI's graph by their path, and what an output leads to, across subgraphs. */

const SUBGRAPH_OUTPUT = '-20'

/** The node at "12:7:5": node 5 in subgraph node 7 in subgraph node 12; null if there is none. */
export function nodeAt(root, path) {
  const ids = String(path ?? '').split(':')
  let graph = root
  for (const id of ids.slice(0, -1)) graph = find(graph, id)?.subgraph
  return find(graph, ids.at(-1)) ?? null
}

function find(graph, id) {
  return graph?.nodes.find((node) => String(node.id) === id)
}

/** All graphs: the root and every subgraph. */
function graphsOf(root) {
  return [root, ...(root.subgraphs?.values() ?? [])]
}

/**
 * Every node that the output of `node` with this name reaches: through reroutes, into subgraphs
 * and out of them.
 */
export function nodesFrom(node, outputName, root) {
  const found = new Set()
  const seen = new Set()
  const slot = node.outputs?.findIndex((output) => output.name === outputName)
  if (slot >= 0) follow(node, slot)
  return [...found]

  function follow(origin, slot) {
    for (const id of origin.outputs?.[slot]?.links ?? []) arrive(origin.graph, linkOf(origin.graph, id))
  }

  function arrive(graph, link) {
    if (!link || seen.has(link)) return
    seen.add(link)
    if (String(link.target_id) === SUBGRAPH_OUTPUT) return leave(graph, link.target_slot)
    const target = graph.getNodeById(link.target_id)
    if (!target) return
    if (target.subgraph) enter(target.subgraph, link.target_slot)
    else if (target.type === 'Reroute') follow(target, 0)
    else found.add(target)
  }

  function enter(subgraph, slot) {
    for (const id of subgraph.inputs?.[slot]?.linkIds ?? []) arrive(subgraph, linkOf(subgraph, id))
  }

  function leave(subgraph, slot) {
    for (const graph of graphsOf(root)) {
      for (const each of graph.nodes) if (each.subgraph === subgraph) follow(each, slot)
    }
  }
}

function linkOf(graph, id) {
  return graph.getLink ? graph.getLink(id) : graph.links.get(id)
}
