package status

import (
	"encoding/json"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// body is the mesh's share of an object's status. Parts that are nil are not the mesh's to say.
type body struct {
	generation int64
	// settled says that the object has it already.
	settled    bool
	conditions []cluster.Condition
	// yielding bodies are not written where somebody else has judged the object.
	yielding bool
	// addresses and listeners are a Gateway's; features those of a class or a mesh.
	addresses []any
	listeners []listener
	features  []string
	// parents are a route's, or a policy's ancestors, under the name of controller.
	parents    []cluster.ParentStatus
	entries    entryNames
	controller string
}

// entryNames are what status calls a list of entries, each a controller's for an object, and the field of an entry that names the object.
type entryNames struct{ list, ref string }

// The lists of routes and of policies.
var (
	routeEntries  = entryNames{"parents", "parentRef"}
	policyEntries = entryNames{"ancestors", "ancestorRef"}
)

// maxAncestors is how many entries status.ancestors may have, those of others included. The definition's.
const maxAncestors = 16

// listener is the mesh's share of the status of one listener.
type listener struct {
	name       string
	kinds      []any
	conditions []cluster.Condition
}

// merge puts the mesh's share into a status, and returns the fields of it that are others then.
func (b body) merge(status map[string]any, now string) map[string]any {
	changed := map[string]any{}
	set := func(field string, value any) {
		if !reflect.DeepEqual(status[field], value) {
			changed[field] = value
		}
	}
	if b.yielding && judged(list(status["conditions"]), b.conditions) {
		return nil
	}
	if b.conditions != nil {
		set("conditions", mergeConditions(list(status["conditions"]), b.conditions, nil, now))
	}
	if b.addresses != nil && (len(b.addresses) > 0 || status["addresses"] != nil) {
		set("addresses", b.addresses)
	}
	if b.listeners != nil {
		set("listeners", b.mergeListeners(list(status["listeners"]), now))
	}
	if b.features != nil {
		set("supportedFeatures", mergeFeatures(list(status["supportedFeatures"]), b.features))
	}
	if b.controller != "" {
		parents := b.mergeParents(list(status[b.entries.list]), now)
		if b.entries == policyEntries {
			parents = parents[:min(len(parents), maxAncestors)]
		}
		if len(parents) > 0 || status[b.entries.list] != nil {
			set(b.entries.list, parents)
		}
	}
	return changed
}

func list(v any) []any {
	l, _ := v.([]any)
	return runtime.DeepCopyJSONValue(l).([]any)
}

// mergeConditions puts conditions into the place of those of their types. Others are left as they are, but for those of the types
// dropped. A condition whose status is the same keeps the time of its transition.
func mergeConditions(there []any, want []cluster.Condition, dropped []string, now string) []any {
	out := []any{}
	done := map[string]bool{}
	render := func(c cluster.Condition, old map[string]any) map[string]any {
		m := map[string]any{}
		for k, v := range old { // fields of a newer definition stay
			m[k] = v
		}
		if old["status"] != c.Status || old["lastTransitionTime"] == nil {
			m["lastTransitionTime"] = now
		}
		m["type"], m["status"], m["reason"], m["message"], m["observedGeneration"] = c.Type, c.Status, c.Reason, c.Message, c.Generation
		return m
	}
	for _, v := range there {
		old, ok := v.(map[string]any)
		if !ok {
			continue
		}
		typ, _ := old["type"].(string)
		i := slices.IndexFunc(want, func(c cluster.Condition) bool { return c.Type == typ })
		switch {
		case i >= 0:
			out = append(out, render(want[i], old))
			done[typ] = true
		case !slices.Contains(dropped, typ):
			out = append(out, old)
		}
	}
	for _, c := range want {
		if !done[c.Type] {
			out = append(out, render(c, nil))
		}
	}
	return out
}

// judged reports whether somebody else has said whether the object is accepted.
func judged(there []any, ours []cluster.Condition) bool {
	for _, v := range there {
		c, _ := v.(map[string]any)
		for _, o := range ours {
			if c["type"] == o.Type && c["status"] != "Unknown" && c["message"] != o.Message {
				return true
			}
		}
	}
	return false
}

// mergeListeners has an entry for each listener, what others said of it included.
func (b body) mergeListeners(there []any, now string) []any {
	out := []any{}
	for _, l := range b.listeners {
		entry := map[string]any{}
		for _, v := range there {
			if m, _ := v.(map[string]any); m["name"] == l.name {
				entry = m
			}
		}
		if entry["attachedRoutes"] == nil {
			entry["attachedRoutes"] = int64(0)
		}
		entry["name"], entry["supportedKinds"] = l.name, l.kinds
		entry["conditions"] = mergeConditions(list(entry["conditions"]), l.conditions, nil, now)
		out = append(out, entry)
	}
	return out
}

// mergeFeatures names features, in order; what else an entry has stays.
func mergeFeatures(there []any, names []string) []any {
	out := []any{}
	for _, name := range names {
		entry := map[string]any{"name": name}
		for _, v := range there {
			if m, _ := v.(map[string]any); m["name"] == name {
				entry = m
			}
		}
		out = append(out, entry)
	}
	return out
}

// droppedFromRoutes are conditions that routes do not always have: the one only when it is true, the other for parents that are there.
var droppedFromRoutes = []string{"PartiallyInvalid", "ResolvedWaypoints"}

// mergeParents puts the entries of the mesh's controller into their places. Those of other controllers are left as they are.
func (b body) mergeParents(there []any, now string) []any {
	out := []any{}
	done := make([]bool, len(b.parents))
	refs := make([]any, len(b.parents))
	for i, p := range b.parents {
		refs[i] = asJSON(p.Ref)
	}
	for _, v := range there {
		entry, ok := v.(map[string]any)
		if !ok || entry["controllerName"] != b.controller {
			out = append(out, v)
			continue
		}
		for i, p := range b.parents {
			if !done[i] && reflect.DeepEqual(refs[i], entry[b.entries.ref]) {
				done[i] = true
				entry["conditions"] = mergeConditions(list(entry["conditions"]), p.Conditions, droppedFromRoutes, now)
				out = append(out, entry)
				break
			}
		}
	}
	for i, p := range b.parents {
		if !done[i] {
			out = append(out, map[string]any{
				b.entries.ref: refs[i], "controllerName": b.controller, "conditions": mergeConditions(nil, p.Conditions, nil, now),
			})
		}
	}
	return out
}

// asJSON is a typed value as clients of the API server have it.
func asJSON(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		return nil // of references to objects, which can always be written
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		return nil
	}
	for k, field := range out { // whole numbers as clients have them
		if f, ok := field.(float64); ok {
			out[k] = int64(f)
		}
	}
	return out
}
