package install

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/cli/survey"
)

// refuseOthers refuses to install where another mesh is in the way. With beside, other control planes are not, if they live
// in other namespaces; of what works on the nodes there can still be only one of each.
func refuseOthers(ctx context.Context, client kubernetes.Interface, namespace string, vals map[string]any, beside bool) error {
	others, err := survey.Others(ctx, client, namespace)
	if err != nil || len(others) == 0 {
		return err
	}
	if !beside {
		return fmt.Errorf("another mesh is in this cluster:\n%s\nRemove it first, or install beside it, in a namespace of its own: ambit install --beside -n NAMESPACE",
			list(others))
	}
	var same, node []survey.Foreign
	for _, other := range others {
		if other.Namespace == namespace {
			same = append(same, other)
		}
		if other.Node != "" && enabled(vals, other.Node) {
			node = append(node, other)
		}
	}
	if len(same) > 0 {
		return fmt.Errorf("another mesh's parts are in namespace %s:\n%s\nChoose a namespace of its own with -n", namespace, list(same))
	}
	if len(node) > 0 {
		return fmt.Errorf("another mesh works on the nodes:\n%s\nTwo of a kind would both redirect the same pods. Use theirs and leave ours out: %s",
			list(node), leaveOut(node))
	}
	return nil
}

func list(others []survey.Foreign) string {
	var lines []string
	for _, other := range others {
		lines = append(lines, "  "+other.String())
	}
	return strings.Join(lines, "\n")
}

// enabled tells whether the user's values leave a part in.
func enabled(vals map[string]any, component survey.Component) bool {
	part, _ := vals[string(component)].(map[string]any)
	on, given := part["enabled"].(bool)
	return !given || on
}

func leaveOut(others []survey.Foreign) string {
	var sets []string
	for _, other := range others {
		set := fmt.Sprintf("--set %s.enabled=false", other.Node)
		if len(sets) == 0 || sets[len(sets)-1] != set {
			sets = append(sets, set)
		}
	}
	return strings.Join(sets, " ")
}
