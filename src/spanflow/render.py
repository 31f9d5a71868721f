"""Draw a plan as a Mermaid flowchart."""

from spanflow.plan import (
    Body,
    BranchNode,
    ForeachNode,
    LoopNode,
    MapNode,
    Node,
    ParallelNode,
    Plan,
    SleepNode,
    WaitNode,
    WorkflowNode,
)


def to_mermaid(plan: Plan) -> str:
    """Return Mermaid source: one box a step, a subgraph a nested workflow, labelled arrows for arms and loops."""
    chart = _Chart()
    chart.lines.append("flowchart TD")
    chart.lines.append('  start(["start"])')
    last = chart.sequence(plan.nodes, ["start"], "")
    chart.lines.append('  finish(["finish"])')
    chart.join(last, "finish")
    return "\n".join(chart.lines) + "\n"


class _Chart:
    """Lines of Mermaid, with names made up for the boxes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0

    def sequence(self, nodes: tuple[Node, ...], before: list[str], indent: str) -> list[str]:
        for node in nodes:
            before = self.node(node, before, indent)
        return before

    def node(self, node: Node, before: list[str], indent: str) -> list[str]:
        """Draw one node after ``before``; return the boxes that the next one follows."""
        match node:
            case ParallelNode():
                return [end for arm in node.arms for end in self.body(arm, before, indent)]
            case BranchNode():
                return self._branch(node, before, indent)
            case ForeachNode():
                return self.body(node.body, before, indent, label=f"for each, {node.concurrency} at a time")
            case LoopNode():
                return self._loop(node, before, indent)
            case SleepNode():
                return [self._box(node.id, before, indent, "[/", "/]")]
            case WaitNode():
                return [self._box(f"wait for {node.event}", before, indent, "[/", "/]")]
            case MapNode():
                return [self._box(node.id, before, indent, "(", ")")]
            case _:
                return self.body(node, before, indent)

    def body(self, body: Body, before: list[str], indent: str, label: str = "") -> list[str]:
        if not isinstance(body, WorkflowNode):
            brackets = ("[[", "]]") if body.kind == "tool" else ("[", "]")
            return [self._box(body.id, before, indent, *brackets, label=label)]
        entry = self._box(body.id, before, indent, "([", "])", label=label)
        self.lines.append(f"{indent}  subgraph {entry}_inside [{_quoted(body.id)}]")
        ends = self.sequence(body.plan.nodes, [entry], indent + "  ")
        self.lines.append(f"{indent}  end")
        return ends

    def join(self, before: list[str], box: str, indent: str = "", label: str = "") -> None:
        arrow = f"-->|{_quoted(label)}|" if label else "-->"
        self.lines.extend(f"{indent}  {each} {arrow} {box}" for each in before)

    def _branch(self, node: BranchNode, before: list[str], indent: str) -> list[str]:
        fork = self._box(node.id, before, indent, "{", "}")
        ends: list[str] = []
        for index, arm in enumerate(node.arms):
            ends += self.body(arm.body, [fork], indent, label=f"when {index + 1}")
        if node.default is not None:
            ends += self.body(node.default, [fork], indent, label="default")
        return ends

    def _loop(self, node: LoopNode, before: list[str], indent: str) -> list[str]:
        first = self._count + 1
        ends = self.body(node.body, before, indent)
        test = self._box("until" if node.until else "while", ends, indent, "{", "}")
        self.join([test], f"n{first}", indent, "no" if node.until else "yes")
        return [test]

    def _box(self, text: str, before: list[str], indent: str, left: str, right: str, label: str = "") -> str:
        self._count += 1
        name = f"n{self._count}"
        self.lines.append(f"{indent}  {name}{left}{_quoted(text)}{right}")
        self.join(before, name, indent, label)
        return name


def _quoted(text: str) -> str:
    return '"' + text.replace("&", "&amp;").replace('"', "#quot;").replace("<", "&lt;") + '"'
