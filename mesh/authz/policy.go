package authz

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/ambit-mesh/ambit/api/security"
)

// AnnotationDryRun makes a policy decide and tell, and not enforce. Its value is a boolean. Istio's.
const AnnotationDryRun = "istio.io/dry-run"

// whereDryRun is where a Problem of the annotation is.
const whereDryRun = "annotation " + AnnotationDryRun

// Action is what a policy does with the connections that it matches.
type Action uint8

// The actions. Audit and Custom cannot be carried out at layer 4.
const (
	Allow Action = iota
	Deny
	Audit
	Custom
)

// actions are the values of spec.action.
var actions = map[string]Action{"": Allow, "ALLOW": Allow, "DENY": Deny, "AUDIT": Audit, "CUSTOM": Custom}

// String is the value of spec.action.
func (a Action) String() string {
	return [...]string{"ALLOW", "DENY", "AUDIT", "CUSTOM"}[a]
}

// Policy is an AuthorizationPolicy that was read. It is immutable.
type Policy struct {
	Namespace, Name string
	Action          Action
	// Selector picks workloads by labels; without one the policy is its namespace's, or the mesh's in the root namespace.
	Selector map[string]string
	// Attached says that the policy has targetRefs: it is a waypoint's, and node proxies do not enforce it.
	Attached bool
	DryRun   bool
	// Provider is who is asked by a CUSTOM policy.
	Provider string
	// Problems say what of the policy does not mean at layer 4 what it says, in the order of the text.
	Problems []Problem
	// Requests is what it means at waypoints; zero if it has no targetRefs.
	Requests Requests

	rules []*security.Rule
	text  []byte // what it was read from, to tell two states apart
}

// ProblemKind is a kind of Problem.
type ProblemKind uint8

const (
	// Layer7 is an attribute of requests, which connections do not have.
	Layer7 ProblemKind = iota
	// Invalid is malformed.
	Invalid
	// Unsupported is something that waypoints do not do.
	Unsupported
)

// Problem is one part of a policy that cannot be decided on where it is to be.
type Problem struct {
	Kind ProblemKind
	// Where is a path such as "rules[0].to[1].operation.methods".
	Where string
	// What is wrong with an Invalid part, or one that is not supported; empty for Layer7.
	What string
}

// String is a clause of a sentence.
func (p Problem) String() string {
	switch p.Kind {
	case Layer7:
		return p.Where + " is of layer 7"
	case Unsupported:
		return p.Where + " " + p.What
	}
	return p.Where + ": " + p.What
}

// Read reads a policy. spec is its decoded JSON. It always returns a Policy: what cannot be read denies, see the package's rule.
func Read(namespace, name string, annotations map[string]string, spec any) *Policy {
	p := &Policy{Namespace: namespace, Name: name}
	p.text, _ = json.Marshal([]any{spec, annotations[AnnotationDryRun]}) // decoded JSON can be encoded
	defer p.readDryRun(annotations[AnnotationDryRun])
	fields, ok := spec.(map[string]any)
	if !ok && spec != nil {
		p.invalid("spec", "is not an object")
		p.denyAll()
		return p
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		switch field {
		case "action", "selector", "rules", "provider":
		case "targetRef", "targetRefs":
			if targets, ok := fields[field].([]any); !ok || len(targets) > 0 {
				p.Attached = fields[field] != nil || p.Attached
			}
		default:
			p.invalid("spec."+field, "is not known")
		}
	}
	p.readAction(fields["action"])
	p.readSelector(fields["selector"])
	p.readProvider(fields["provider"])
	unreadable := slices.Clone(p.Problems)
	p.readRules(fields["rules"])
	if len(unreadable) > 0 {
		p.denyAll()
	}
	if p.Attached {
		p.Requests.problem(unreadable...)
		p.readTargets(fields)
		p.readRequests(fields["rules"])
		if len(unreadable) > 0 {
			p.Requests.denyAll(p.denies())
		}
	}
	return p
}

// Equal reports whether both were read from the same text.
func (p *Policy) Equal(o *Policy) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && bytes.Equal(p.text, o.text)
}

// Enforced reports whether node proxies are given the policy at all.
func (p *Policy) Enforced() bool { return !p.Attached && (p.Action == Allow || p.Action == Deny) }

func (p *Policy) invalid(where, format string, args ...any) {
	p.Problems = append(p.Problems, Problem{Kind: Invalid, Where: where, What: fmt.Sprintf(format, args...)})
}

// denyAll makes the policy deny whatever it selects.
func (p *Policy) denyAll() {
	if p.Action == Allow {
		p.rules = nil
	} else {
		p.rules = []*security.Rule{{}}
	}
}

// readDryRun takes a policy whose annotation means nothing for one that is in force.
func (p *Policy) readDryRun(value string) {
	if value == "" {
		return
	}
	var err error
	if p.DryRun, err = strconv.ParseBool(value); err != nil {
		p.DryRun = false
		fault := Problem{Invalid, whereDryRun, strconv.Quote(value) + " is neither true nor false, so the policy is in force"}
		p.Problems = append(p.Problems, fault)
		if p.Attached {
			p.Requests.problem(fault)
		}
	}
}

func (p *Policy) readAction(value any) {
	text, ok := value.(string)
	action, known := actions[text]
	if value != nil && !ok || !known {
		p.Action = Deny // of everything, which Read sees to
		p.invalid("action", "%v is none of ALLOW, DENY, AUDIT, CUSTOM", value)
		return
	}
	p.Action = action
}

// readProvider reads who is asked.
func (p *Policy) readProvider(value any) {
	fields, ok := value.(map[string]any)
	if value != nil && !ok {
		p.invalid("provider", "is not an object")
		return
	}
	for field := range fields {
		if field != "name" {
			p.invalid("provider."+field, "is not known")
			return
		}
	}
	if p.Provider, ok = fields["name"].(string); fields["name"] != nil && !ok {
		p.invalid("provider.name", "is not a string")
	}
}

// readSelector takes a policy whose selector cannot be read for one of its whole namespace.
func (p *Policy) readSelector(value any) {
	if value == nil {
		return
	}
	fields, ok := value.(map[string]any)
	labels, isMap := fields["matchLabels"].(map[string]any)
	if !ok || !isMap && fields["matchLabels"] != nil {
		p.invalid("selector", "matchLabels is not a map of strings")
		return
	}
	for field := range fields {
		if field != "matchLabels" {
			p.invalid("selector."+field, "is not known")
			return
		}
	}
	selector := map[string]string{}
	for name, v := range labels {
		text, ok := v.(string)
		if !ok {
			p.invalid("selector.matchLabels", "the value of %q is not a string", name)
			return
		}
		selector[name] = text
	}
	if len(selector) > 0 {
		p.Selector = selector
	}
}

// Mesh is what the meaning of policies depends on besides their text.
type Mesh struct {
	RootNamespace string
	// TrustDomains are the mesh's own and its aliases, which are the same to principals in policies.
	TrustDomains []string
}

// Authorization is what node proxies are told; nil if they are not given the policy.
func (p *Policy) Authorization(m Mesh) *security.Authorization {
	if !p.Enforced() {
		return nil
	}
	a := &security.Authorization{Name: p.Name, Namespace: p.Namespace, DryRun: p.DryRun}
	switch {
	case len(p.Selector) > 0:
		a.Scope = security.Scope_WORKLOAD_SELECTOR
	case p.Namespace == m.RootNamespace:
		a.Scope = security.Scope_GLOBAL
	default:
		a.Scope = security.Scope_NAMESPACE
	}
	if p.Action == Deny {
		a.Action = security.Action_DENY
	}
	for _, r := range p.rules {
		a.Rules = append(a.Rules, withAliases(r, p.Action, m.TrustDomains))
	}
	return a
}
