package cluster

import (
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/mesh/authz"
)

// AuthorizationPolicy says who may connect to workloads.
type AuthorizationPolicy struct {
	Key
	Generation int64
	// Policy is what it says.
	Policy *authz.Policy
	// Selector is the policy's.
	Selector Labels
	// Seen and SeenWaypoint are the conditions that the object has of the types that the control plane writes: for node proxies, and
	// for waypoints.
	Seen, SeenWaypoint Condition
}

// Condition is a status condition as an object has it. The zero Condition is one that is not there.
type Condition struct {
	Type, Status, Reason, Message string
	// Generation is that of the object which the condition is about.
	Generation int64
}

// ObjectKind is KindAuthorizationPolicy.
func (*AuthorizationPolicy) ObjectKind() Kind { return KindAuthorizationPolicy }

// ObjectKey is namespace and name.
func (p *AuthorizationPolicy) ObjectKey() Key { return p.Key }

// Equal reports whether both are the same in every field.
func (p *AuthorizationPolicy) Equal(o *AuthorizationPolicy) bool {
	return p.Key == o.Key && p.Generation == o.Generation && p.Seen == o.Seen && p.SeenWaypoint == o.SeenWaypoint && p.Policy.Equal(o.Policy)
}

// AuthorizationPolicyOf reduces an AuthorizationPolicy.
func AuthorizationPolicyOf(in *unstructured.Unstructured) *AuthorizationPolicy {
	p := &AuthorizationPolicy{
		Key:        Key{in.GetNamespace(), in.GetName()},
		Generation: in.GetGeneration(),
		Policy:     authz.Read(in.GetNamespace(), in.GetName(), in.GetAnnotations(), in.Object["spec"]),
	}
	p.Selector = LabelsOf(p.Policy.Selector)
	p.Seen, p.SeenWaypoint = seenBy(in, authz.ConditionType), seenBy(in, authz.WaypointConditionType)
	return p
}

// seenBy is the condition that an object has of a type.
func seenBy(in *unstructured.Unstructured, typ string) Condition {
	for _, c := range ConditionsOf(in) {
		if c.Type == typ {
			return c
		}
	}
	return Condition{}
}

// ConditionsOf reads the status conditions of an object of one of Istio's kinds. What is none is left out.
func ConditionsOf(in *unstructured.Unstructured) []Condition {
	list, _, err := unstructured.NestedSlice(in.Object, "status", "conditions")
	if err != nil {
		return nil
	}
	var out []Condition
	for _, v := range list {
		m, ok := v.(map[string]any)
		if !ok {
			continue
		}
		text := func(field string) string { s, _ := m[field].(string); return s }
		c := Condition{Type: text("type"), Status: text("status"), Reason: text("reason"), Message: text("message")}
		c.Generation, _ = strconv.ParseInt(fmt.Sprint(m["observedGeneration"]), 10, 64) // an integer or its text
		out = append(out, c)
	}
	return out
}
