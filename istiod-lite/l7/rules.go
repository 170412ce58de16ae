package l7

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// Rules are DestinationRules, by namespace and by their words for a host. The zero Rules has none.
type Rules struct {
	in map[string]map[string][]*cluster.DestinationRule
}

// Add takes a rule.
func (r *Rules) Add(rule *cluster.DestinationRule) {
	if r.in == nil {
		r.in = map[string]map[string][]*cluster.DestinationRule{}
	}
	hosts := r.in[rule.Namespace]
	if hosts == nil {
		hosts = map[string][]*cluster.DestinationRule{}
		r.in[rule.Namespace] = hosts
	}
	all := append(slices.Clone(hosts[rule.Host]), rule)
	slices.SortFunc(all, cluster.CompareDestinationRules)
	hosts[rule.Host] = all
}

// Remove gives up a rule that Add took.
func (r *Rules) Remove(rule *cluster.DestinationRule) {
	hosts := r.in[rule.Namespace]
	rest := slices.DeleteFunc(slices.Clone(hosts[rule.Host]), func(o *cluster.DestinationRule) bool { return o.Key == rule.Key })
	if len(rest) > 0 {
		hosts[rule.Host] = rest
		return
	}
	if delete(hosts, rule.Host); len(hosts) == 0 {
		delete(r.in, rule.Namespace)
	}
}

// Alike are the rules of the same namespace that have the same words for a host, the one that counts first.
func (r *Rules) Alike(rule *cluster.DestinationRule) []*cluster.DestinationRule {
	return r.in[rule.Namespace][rule.Host]
}

// Len is the number of rules.
func (r *Rules) Len() int {
	n := 0
	for _, hosts := range r.in {
		for _, all := range hosts {
			n += len(all)
		}
	}
	return n
}

// Lookup returns the rule that is in force for a host at a waypoint of a namespace, nil if there is none: one of the waypoint's
// namespace before one of the host's, and that before one of the mesh's root namespace; in a namespace the one whose host says more.
func (r *Rules) Lookup(m translate.Mesh, from string, h *Host) *cluster.DestinationRule {
	if from != m.RootNamespace { // which has its turn
		if rule := r.within(from, from, h); rule != nil {
			return rule
		}
	}
	if rule := r.within(h.Ref.Key.Namespace, from, h); rule != nil {
		return rule
	}
	return r.within(m.RootNamespace, from, h)
}

func (r *Rules) within(namespace, from string, h *Host) *cluster.DestinationRule {
	hosts := r.in[namespace]
	if len(hosts) == 0 {
		return nil
	}
	find := func(names ...string) *cluster.DestinationRule {
		var best *cluster.DestinationRule
		for _, name := range names {
			i := slices.IndexFunc(hosts[name], func(o *cluster.DestinationRule) bool { return effective(o) && o.VisibleTo(from) })
			if i >= 0 && (best == nil || cluster.CompareDestinationRules(hosts[name][i], best) < 0) {
				best = hosts[name][i]
			}
		}
		return best
	}
	names := []string{h.Hostname}
	if h.Ref.IsService() && h.Ref.Key.Namespace == namespace {
		names = append(names, h.Ref.Key.Name)
	}
	if rule := find(names...); rule != nil {
		return rule
	}
	for rest := h.Hostname; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return find("*")
		}
		if rule := find("*" + rest[i:]); rule != nil {
			return rule
		}
		rest = rest[i+1:]
	}
}

// Means reports whether the words of a rule for a host are for h, whatever other rules there are.
func Means(rule *cluster.DestinationRule, h *Host) bool {
	if suffix, ok := strings.CutPrefix(rule.Host, "*"); ok {
		return strings.HasSuffix(h.Hostname, suffix)
	}
	return rule.Host == h.Hostname || h.Ref.IsService() && rule.Host == h.Ref.Key.Name && rule.Namespace == h.Ref.Key.Namespace
}

// effective reports whether a rule can be in force at waypoints.
func effective(r *cluster.DestinationRule) bool {
	return r.Host != "" && !r.Selective && r.Policy != nil
}

// Reasons of authz.WaypointConditionType.
const (
	reasonAccepted    = "Accepted"
	reasonInvalid     = "Invalid"
	reasonUnsupported = "UnsupportedValue"
)

// RuleStatus says what waypoints make of a rule. It depends on the rules that are alike.
func RuleStatus(r *cluster.DestinationRule, alike []*cluster.DestinationRule) translate.Status {
	say := func(status, reason, format string, args ...any) translate.Status {
		message := fmt.Sprintf(format, args...)
		if len(message) > maxMessage {
			message = strings.ToValidUTF8(message[:maxMessage], "") + "..."
		}
		return translate.Status{Kind: r.ObjectKind(), Key: r.Key, Type: authz.WaypointConditionType, Seen: r.Seen, Want: cluster.Condition{
			Type: authz.WaypointConditionType, Status: status, Reason: reason, Message: message, Generation: r.Generation}}
	}
	first := slices.IndexFunc(alike, effective)
	switch faults := strings.Join(r.Faults, "; "); {
	case r.Host == "":
		return say("False", reasonInvalid, "it cannot be read: %s", faults)
	case r.Selective:
		return say("False", reasonUnsupported, "spec.workloadSelector: picks clients that are sidecars; waypoints act for all clients, so the rule is not in force there")
	case r.Policy != nil && first >= 0 && alike[first] != r && alike[first].Key != r.Key:
		return say("False", string(reasonConflicted), "DestinationRule %s is for the same host and older, or the first by name", alike[first].Key)
	case faults != "" && r.Policy == nil:
		return say("False", reasonUnsupported, "nothing of it is in force: %s", faults)
	case faults != "":
		return say("False", reasonUnsupported, "all but this is in force: %s", faults)
	}
	return say("True", reasonAccepted, "in force at waypoints that send to %s", r.Host)
}
