package translate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Names of the authorisations that PeerAuthentications become. Istio's.
const (
	strictName      = "istio_converted_static_strict"
	convertedPrefix = "converted_peer_authentication_"
	// inheritedStrict marks the variant, for workloads whose namespace or mesh is STRICT, of a policy that leaves the mode
	// of the workload to them and sets that of ports.
	inheritedStrict = "_inherited_strict"
)

// Static lists the authorisations that are always there.
func Static(m Mesh) []*security.Authorization {
	return []*security.Authorization{{
		Name:      strictName,
		Namespace: m.RootNamespace,
		Scope:     security.Scope_WORKLOAD_SELECTOR,
		Action:    security.Action_DENY,
		Rules:     []*security.Rule{denyPlain(nil, nil)},
	}}
}

// AuthorizationName is the key of an authorisation.
func AuthorizationName(a *security.Authorization) string { return a.Namespace + "/" + a.Name }

// denyPlain matches connections from peers without an identity, to these ports if there are some, and to none of the others.
func denyPlain(ports, exempt []uint32) *security.Rule {
	return &security.Rule{Clauses: []*security.Clause{{Matches: []*security.Match{{
		NotPrincipals:       []*security.StringMatch{{MatchType: &security.StringMatch_Presence{Presence: &security.Empty{}}}},
		DestinationPorts:    ports,
		NotDestinationPorts: exempt,
	}}}}}
}

// effective reads a mode where nothing wider is left to inherit.
func effective(m cluster.MTLSMode) cluster.MTLSMode {
	if m == cluster.MTLSStrict {
		return cluster.MTLSStrict
	}
	return cluster.MTLSPermissive
}

// Inherited is the mode of workloads that no policy selects: the namespace's, else the mesh's, else PERMISSIVE. Either may be
// nil.
func Inherited(mesh, namespace *cluster.PeerAuthentication) cluster.MTLSMode {
	for _, p := range []*cluster.PeerAuthentication{namespace, mesh} {
		if p != nil && p.Mode != cluster.MTLSUnset {
			return effective(p.Mode)
		}
	}
	return cluster.MTLSPermissive
}

// Older orders policies of one scope: the first is the one that counts.
func Older(a, b *cluster.PeerAuthentication) int {
	return cmp.Or(a.Created.Compare(b.Created), a.Key.Compare(b.Key))
}

// PeerAuthenticationPolicies names the authorisations of a workload, given the mode that it inherits and the policy that
// selects it, nil if none does.
func PeerAuthenticationPolicies(m Mesh, inherited cluster.MTLSMode, selected *cluster.PeerAuthentication) []string {
	mode := inherited
	if selected != nil {
		if selected.Mode != cluster.MTLSUnset {
			mode = effective(selected.Mode)
		}
		if a := converted(selected, mode); a != nil {
			return []string{AuthorizationName(a)}
		}
	}
	if mode == cluster.MTLSStrict {
		return []string{m.RootNamespace + "/" + strictName}
	}
	return nil
}

// PeerAuthentication translates a policy that sets modes for ports into the authorisations that workloads then name; others
// need none of their own.
func PeerAuthentication(p *cluster.PeerAuthentication) ([]*security.Authorization, []Problem) {
	problems := Faults(p, p.Faults)
	problem := func(message string) {
		problems = append(problems, Problem{p.ObjectKind(), p.Key, message})
	}
	if p.Mode == cluster.MTLSDisable || slices.ContainsFunc(p.Ports, func(pm cluster.PortMTLS) bool { return pm.Mode == cluster.MTLSDisable }) {
		problem("mode DISABLE is not supported for captured pods; treated as PERMISSIVE")
	}
	if len(p.Selector) == 0 {
		if len(p.Ports) > 0 {
			problem("portLevelMtls needs a selector; ignored")
		}
		return nil, problems
	}
	modes := []cluster.MTLSMode{effective(p.Mode)}
	if p.Mode == cluster.MTLSUnset {
		modes = []cluster.MTLSMode{cluster.MTLSPermissive, cluster.MTLSStrict}
	}
	var out []*security.Authorization
	for _, mode := range modes {
		if a := converted(p, mode); a != nil {
			out = append(out, a)
		}
	}
	return out, problems
}

// converted is the authorisation of a policy whose ports differ from the mode of the workload as a whole; nil if none does.
func converted(p *cluster.PeerAuthentication, mode cluster.MTLSMode) *security.Authorization {
	var differing []uint32
	for _, pm := range p.Ports {
		if pm.Mode != cluster.MTLSUnset && effective(pm.Mode) != mode {
			differing = append(differing, uint32(pm.Port))
		}
	}
	if len(differing) == 0 {
		return nil
	}
	a := &security.Authorization{
		Name:      convertedPrefix + p.Name,
		Namespace: p.Namespace,
		Scope:     security.Scope_WORKLOAD_SELECTOR,
		Action:    security.Action_DENY,
	}
	if mode == cluster.MTLSStrict {
		a.Rules = []*security.Rule{denyPlain(nil, differing)}
		if p.Mode == cluster.MTLSUnset {
			a.Name += inheritedStrict
		}
	} else {
		a.Rules = []*security.Rule{denyPlain(differing, nil)}
	}
	return a
}

// Shadowed says that a policy without a selector does not count, since an older one has its scope.
func Shadowed(p, by *cluster.PeerAuthentication) Problem {
	return Problem{p.ObjectKind(), p.Key, fmt.Sprintf("policy %s for the same scope is older and wins", by.Key)}
}
