package l7

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Securing is where hosts find by which TLS they are spoken to. Its methods have no side effects.
type Securing interface {
	// BackendTLS returns the policies of which the object is a target, in any order, each once.
	BackendTLS(target cluster.ObjectRef) []*cluster.BackendTLSPolicy
	// Bundle returns whom a config map says to trust; nil if there is none of that name.
	Bundle(key cluster.Key) *cluster.Bundle
}

// Origination is how endpoints are spoken to by TLS, and whom they must prove to be.
type Origination struct {
	// Name is the server name that they are asked for. Roots are PEM, "" for whom the system trusts.
	Name, Roots string
	// Names are those of which their certificate must have one.
	Names []cluster.SubjectName
	// Fault is why they cannot be spoken to at all, "" if they can.
	Fault string
}

// Secured returns the host with what policies say of its ports.
func (h *Host) Secured(in Securing) *Host {
	policies := in.BackendTLS(h.Ref)
	if len(policies) == 0 {
		return h
	}
	out := *h
	out.TLS = map[uint16]*Origination{}
	for _, port := range h.Ports {
		if p := decides(h.Ref, port, policies); p != nil {
			out.TLS[port.Port] = origination(p, in)
		}
	}
	return &out
}

// decides is which of the policies of an object has the say over one of its ports, nil if none has: one that names the port before
// one for the whole object, then the oldest, then the first by name.
func decides(ref cluster.ObjectRef, port cluster.ServicePort, policies []*cluster.BackendTLSPolicy) *cluster.BackendTLSPolicy {
	for _, named := range [...]bool{true, false} {
		var best *cluster.BackendTLSPolicy
		for _, p := range policies {
			means := slices.ContainsFunc(p.Targets, func(t cluster.PolicyTarget) bool {
				return t.Ref == ref && (t.Section != "") == named && (!named || t.Section == port.Name)
			})
			if means && (best == nil || older(p.Created, p.Key, best.Created, best.Key)) {
				best = p
			}
		}
		if best != nil {
			return best
		}
	}
	return nil
}

// older reports whether of two policies the first comes before the other, by when they were made, then by name.
func older(created time.Time, key cluster.Key, other time.Time, otherKey cluster.Key) bool {
	if c := created.Compare(other); c != 0 {
		return c < 0
	}
	return key.Compare(otherKey) < 0
}

func origination(p *cluster.BackendTLSPolicy, in Securing) *Origination {
	out := &Origination{Name: p.Hostname, Names: p.Names}
	if len(out.Names) == 0 {
		out.Names = []cluster.SubjectName{{Value: p.Hostname}}
	}
	roots, faults := authorities(p, in)
	out.Roots = roots
	switch {
	case len(p.Faults) > 0:
		out.Fault = fmt.Sprintf("BackendTLSPolicy %s cannot be used: %s", p.Key, strings.Join(p.Faults, "; "))
	case !p.System && roots == "":
		out.Fault = fmt.Sprintf("BackendTLSPolicy %s names nobody to trust: %s", p.Key, strings.Join(faults, "; "))
	}
	return out
}

// authorities are whom a policy trusts, as PEM, and what is wrong with its references.
func authorities(p *cluster.BackendTLSPolicy, in Securing) (string, []string) {
	var roots strings.Builder
	var faults []string
	for _, s := range p.Strange {
		faults = append(faults, fmt.Sprintf("caCertificateRefs: %s is of a kind that is not supported; there is ConfigMap", s))
	}
	for _, key := range p.Authorities {
		if b := in.Bundle(key); b.Empty() {
			faults = append(faults, fmt.Sprintf("caCertificateRefs: ConfigMap %s is not there, or has no certificate that can be read under %s", key, cluster.BundleKey))
		} else {
			roots.WriteString(b.Certificates.Value())
		}
	}
	return roots.String(), faults
}

// BackendTLSStatus says what became of a policy, for each of its targets that is a service: that is what the conditions are about,
// since a policy acts wherever a waypoint sends to it. It depends on the targets, the other policies of these, and the bundles.
func BackendTLSStatus(p *cluster.BackendTLSPolicy, ix Index) []cluster.ParentStatus {
	var out []cluster.ParentStatus
	for i, t := range p.Targets {
		if !t.Mesh() || slices.ContainsFunc(p.Targets[:i], func(o cluster.PolicyTarget) bool { return o.Ref == t.Ref && o.Section == t.Section }) {
			continue
		}
		c := conditions{generation: p.Generation}
		roots, faults := authorities(p, ix)
		reason, message := backendTLSAccepted(p, t, ix)
		if reason == gatewayv1.PolicyReasonAccepted && !p.System && roots == "" {
			reason, message = gatewayv1.BackendTLSPolicyReasonNoValidCACertificate, "nothing is sent to the target, since nobody is to be trusted: "+strings.Join(faults, "; ")
		}
		c.add(gatewayv1.RouteConditionType(gatewayv1.PolicyConditionAccepted), reason == gatewayv1.PolicyReasonAccepted, gatewayv1.RouteConditionReason(reason), message)
		resolved, why := gatewayv1.BackendTLSPolicyReasonResolvedRefs, "whom to trust is there"
		switch {
		case len(p.Strange) > 0:
			resolved, why = gatewayv1.BackendTLSPolicyReasonInvalidKind, strings.Join(faults, "; ")
		case len(faults) > 0:
			resolved, why = gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef, strings.Join(faults, "; ")
		}
		c.add(gatewayv1.RouteConditionType(gatewayv1.BackendTLSPolicyConditionResolvedRefs), len(faults) == 0, gatewayv1.RouteConditionReason(resolved), why)
		out = append(out, cluster.ParentStatus{Ref: t.Written, Conditions: c.list})
	}
	return out
}

// backendTLSAccepted says what became of a policy at one of its targets, whom it trusts aside.
func backendTLSAccepted(p *cluster.BackendTLSPolicy, t cluster.PolicyTarget, ix Index) (gatewayv1.PolicyConditionReason, string) {
	h := ix.Host(t.Ref)
	switch {
	case h == nil:
		return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s is not there", t.Ref)
	case h.Unfit != "":
		return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s %s", t.Ref, h.Unfit)
	case len(p.Faults) > 0:
		return gatewayv1.PolicyReasonInvalid, "nothing is sent to the target: " + strings.Join(p.Faults, "; ")
	}
	policies := ix.BackendTLS(t.Ref)
	picked, won := 0, 0
	var rival *cluster.BackendTLSPolicy
	for _, port := range h.Ports {
		if t.Section != "" && t.Section != port.Name {
			continue
		}
		picked++
		if d := decides(t.Ref, port, policies); d == p {
			won++
		} else if rival == nil {
			rival = d
		}
	}
	switch {
	case picked == 0 && t.Section != "":
		return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s has no TCP port of the name %q", t.Ref, t.Section)
	case picked == 0:
		return gatewayv1.PolicyReasonTargetNotFound, fmt.Sprintf("%s has no TCP port", t.Ref)
	case won == 0:
		return gatewayv1.PolicyReasonConflicted, fmt.Sprintf("BackendTLSPolicy %s has the say: it names the port, is older, or the first by name", rival.Key)
	case rival != nil:
		return gatewayv1.PolicyReasonAccepted, fmt.Sprintf("waypoints speak TLS to %s; not on every port by this policy: %s has the say there", t.Ref, rival.Key)
	}
	return gatewayv1.PolicyReasonAccepted, fmt.Sprintf("waypoints speak TLS to %s", t.Ref)
}

// systemRoots is where Envoy finds whom the system trusts. Waypoints of ours know what it stands for.
const systemRoots = "/etc/ssl/certs/ca-certificates.crt"

// endpointSocket is how endpoints are spoken to, inside tunnels as well; nil is in plain.
func endpointSocket(o *Origination) *corev3.TransportSocket {
	if o == nil || o.Fault != "" { // to nobody, then
		return socket(socketRaw, &rawv3.RawBuffer{})
	}
	trusted := &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: o.Roots}}
	if o.Roots == "" {
		trusted.Specifier = &corev3.DataSource_Filename{Filename: systemRoots}
	}
	v := &tlsv3.CertificateValidationContext{TrustedCa: trusted}
	for _, n := range o.Names {
		kind := tlsv3.SubjectAltNameMatcher_DNS
		if n.URI {
			kind = tlsv3.SubjectAltNameMatcher_URI
		}
		v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
			SanType: kind, Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n.Value}}})
	}
	return socket(socketTLS, &tlsv3.UpstreamTlsContext{
		Sni: o.Name,
		// Without ALPN protocols here, what is offered follows from the version of HTTP that is spoken.
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams: &tlsv3.TlsParameters{
				TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v},
		},
	})
}
