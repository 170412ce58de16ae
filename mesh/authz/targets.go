package authz

import (
	"fmt"
	"maps"
	"slices"
)

// Target is what a policy is attached to, in the policy's namespace if it is in one.
type Target struct {
	Kind TargetKind
	Name string
}

// TargetKind is a kind of Target.
type TargetKind string

// Kinds of targets.
const (
	TargetService      TargetKind = "Service"
	TargetServiceEntry TargetKind = "ServiceEntry"
	TargetGateway      TargetKind = "Gateway"
	TargetGatewayClass TargetKind = "GatewayClass"
)

// targetGroups are the API groups of the kinds. The core group has two names.
var targetGroups = map[TargetKind][]string{
	TargetService: {"", "core"}, TargetServiceEntry: {"networking.istio.io"},
	TargetGateway: {"gateway.networking.k8s.io"}, TargetGatewayClass: {"gateway.networking.k8s.io"},
}

// String is for messages.
func (t Target) String() string { return string(t.Kind) + " " + t.Name }

// readTargets reads targetRefs, or targetRef, its old form.
func (p *Policy) readTargets(fields map[string]any) {
	targets, problems := ReadTargets(fields)
	p.Requests.Targets = targets
	p.Requests.problem(problems...)
	if len(p.Selector) > 0 {
		p.Requests.problem(Problem{Invalid, "selector", "must not be there beside targetRefs: the policy is for what these name"})
	}
}

// ReadTargets reads targetRefs, or targetRef, its old form, of the spec of a policy of any kind. Each target is there once; what is none
// is a problem.
func ReadTargets(fields map[string]any) (targets []Target, problems []Problem) {
	list, ok := fields["targetRefs"].([]any)
	switch one := fields["targetRef"]; {
	case fields["targetRefs"] != nil && !ok:
		problems = append(problems, Problem{Invalid, "targetRefs", "is not a list"})
	case one != nil && len(list) > 0:
		problems = append(problems, Problem{Invalid, "targetRef", "must not be there beside targetRefs"})
	case one != nil:
		list = []any{one}
	}
	for i, v := range list {
		t, err := targetOf(v)
		if err == nil && t.Kind == TargetGatewayClass && t.Name != WaypointClass {
			err = fmt.Errorf("there is GatewayClass %s, not %q", WaypointClass, t.Name)
		}
		if err != nil {
			problems = append(problems, Problem{Invalid, fmt.Sprintf("targetRefs[%d]", i), err.Error()})
		} else if !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
	}
	return targets, problems
}

// WaypointClass is the class whose waypoints policies of the root namespace can be for, all of them.
const WaypointClass = "istio-waypoint"

func targetOf(v any) (Target, error) {
	fields, ok := v.(map[string]any)
	if !ok {
		return Target{}, fmt.Errorf("is not an object")
	}
	text := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value, ok := fields[name].(string)
		if !ok {
			return Target{}, fmt.Errorf("%s is not a string", name)
		}
		switch name {
		case "group", "kind", "name":
			text[name] = value
		case "namespace":
			if value != "" {
				return Target{}, fmt.Errorf("namespace: a policy is for what is in its own namespace; leave it out")
			}
		default:
			return Target{}, fmt.Errorf("%s is not known", name)
		}
	}
	t := Target{TargetKind(text["kind"]), text["name"]}
	groups, known := targetGroups[t.Kind]
	if !known || !slices.Contains(groups, text["group"]) {
		return Target{}, fmt.Errorf("kind %q of group %q: want Service, ServiceEntry, Gateway or GatewayClass", t.Kind, text["group"])
	}
	if t.Name == "" {
		return Target{}, fmt.Errorf("name is missing")
	}
	return t, nil
}
