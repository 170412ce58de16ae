package waypoint

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/survey"
	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// advice says what keeps traffic from going through a waypoint, and what to do.
func (f *facts) advice(gateway *gatewayv1.Gateway) []string {
	name := nameOf(gateway)
	subjects := f.of(name)
	var lines []string
	homes := map[string]bool{}
	for _, s := range subjects {
		homes[s.home()] = true
	}
	if len(subjects) == 0 {
		homes[gateway.Namespace] = true
		if trafficOf(gateway) != api.WaypointForNone {
			lines = append(lines, fmt.Sprintf("nothing uses waypoint %s. Have all services of its namespace use it:  kubectl label namespace %s %s=%s",
				name, gateway.Namespace, api.LabelUseWaypoint, gateway.Name))
		}
	}
	for _, namespace := range slices.Sorted(maps.Keys(homes)) {
		if !f.enrolled[namespace] {
			lines = append(lines, fmt.Sprintf("namespace %s is not in the mesh, so its pods do not call through a waypoint, and are called in plain. Enrol it:  kubectl label namespace %s %s=%s",
				namespace, namespace, api.LabelDataplaneMode, api.DataplaneModeAmbient))
		}
	}
	for _, s := range subjects {
		if line := s.mismatch(gateway); line != "" {
			lines = append(lines, line)
		}
		if s.refused != nil {
			lines = append(lines, fmt.Sprintf("%s does not use waypoint %s (%s): %s", s, name, s.refused.Reason, s.refused.Message))
		}
	}
	return append(lines, f.refusals(name)...)
}

// mismatch says that a subject names a waypoint to which traffic of its kind is not sent.
func (s subject) mismatch(gateway *gatewayv1.Gateway) string {
	traffic := trafficOf(gateway)
	wants := api.WaypointForService
	switch s.kind {
	case "namespace":
		return "" // whatever of it the waypoint is for
	case "pod", "workloadentry":
		wants = api.WaypointForWorkload
	}
	if traffic == wants || traffic == api.WaypointForAll {
		return ""
	}
	return fmt.Sprintf("%s names waypoint %s, which is for %s traffic. Change that:  ambit waypoint apply -n %s --name %s --for %s",
		s, s.uses, traffic, gateway.Namespace, gateway.Name, api.WaypointForAll)
}

// dangling names the labels that name no waypoint. Where one namespace was chosen, those in it and those that name it.
func (f *facts) dangling() []string {
	var lines []string
	for _, s := range f.subjects {
		if f.exists[s.uses] {
			continue
		}
		lines = append(lines, fmt.Sprintf("%s has the label %s=%s, but there is no waypoint %s: its traffic goes on at layer 4. Make it:  ambit waypoint apply -n %s --name %s",
			s, api.LabelUseWaypoint, s.uses.name, s.uses, s.uses.namespace, s.uses.name))
	}
	return lines
}

// policies are the AuthorizationPolicies that node proxies enforce, by namespace.
type policies struct {
	trustDomain string
	root        string // namespace
	in          map[string][]selected
}

type selected struct {
	*policy.Policy
	selector labels.Set // empty: all pods
}

// readPolicies reads those that may apply to pods behind waypoints.
func (s *session) readPolicies(ctx context.Context, f *facts) (policies, error) {
	settings := survey.Settings(ctx, s.cluster.Kubernetes, s.mesh)
	p := policies{trustDomain: settings.TrustDomain, root: settings.RootNamespace, in: map[string][]selected{}}
	namespaces := map[string]bool{p.root: true}
	for _, services := range f.services {
		for _, service := range services {
			namespaces[service.namespace] = true
		}
	}
	meaning := authz.Mesh{RootNamespace: p.root, TrustDomains: append([]string{settings.TrustDomain}, settings.TrustDomainAliases...)}
	for namespace := range namespaces {
		client := s.cluster.Dynamic.Resource(resource("security.istio.io", "v1", "authorizationpolicies")).Namespace(namespace)
		err := each(ctx, client, "", func(u *unstructured.Unstructured) {
			read := authz.Read(namespace, u.GetName(), u.GetAnnotations(), u.Object["spec"])
			authorization := read.Authorization(meaning)
			if authorization == nil {
				return
			}
			if compiled, _ := policy.Compile(authorization); compiled != nil { // one with a fault fails closed, as in node proxies
				p.in[namespace] = append(p.in[namespace], selected{compiled, read.Selector})
			}
		})
		if err != nil {
			return p, fmt.Errorf("list AuthorizationPolicies of %s: %w", namespace, err)
		}
	}
	return p, nil
}

// at returns the policies that apply to a pod.
func (p policies) at(pod *corev1.Pod) policy.Set {
	var global, local, chosen []*policy.Policy
	for _, namespace := range slices.Compact([]string{p.root, pod.Namespace}) {
		for _, s := range p.in[namespace] {
			switch {
			case len(s.selector) > 0 && !s.selector.AsSelector().Matches(labels.Set(pod.Labels)):
			case len(s.selector) > 0:
				chosen = append(chosen, s.Policy)
			case s.Scope == policy.ScopeGlobal:
				global = append(global, s.Policy)
			default:
				local = append(local, s.Policy)
			}
		}
	}
	return policy.Set{Global: policy.NewGroup(global), Namespace: policy.NewGroup(local), Selected: policy.NewGroup(chosen)}
}

// refusals says where node proxies would refuse the waypoint, which is who calls the pods behind it.
func (f *facts) refusals(waypoint key) []string {
	peer := identity.Identity{TrustDomain: f.policies.trustDomain, Namespace: waypoint.namespace, ServiceAccount: f.accounts[waypoint]}
	source, _ := netip.ParseAddr(f.sources[waypoint])
	var lines []string
	for _, service := range f.services[waypoint] {
		seen := map[string]bool{}
		for i := range service.pods {
			pod := &service.pods[i]
			if pod.Annotations[api.AnnotationRedirection] == "" {
				continue // no node proxy judges for it
			}
			set := f.policies.at(pod)
			addr, _ := netip.ParseAddr(pod.Status.PodIP)
			for _, port := range service.ports {
				d := set.Evaluate(policy.Connection{Peer: peer, Source: source, Destination: netip.AddrPortFrom(addr, targetPort(port, pod))})
				line := fmt.Sprintf("the pods of Service %s refuse waypoint %s: %s. Let the principal %s in too",
					service.key, waypoint, d.Reason, strings.TrimPrefix(peer.String(), identity.Scheme))
				if !d.Allowed() && !seen[line] {
					seen[line] = true
					lines = append(lines, line)
				}
			}
		}
	}
	return lines
}

// targetPort is the port of a pod that a service's port leads to.
func targetPort(port corev1.ServicePort, pod *corev1.Pod) uint16 {
	if name := port.TargetPort.StrVal; name != "" {
		for _, container := range pod.Spec.Containers {
			for _, p := range container.Ports {
				if p.Name == name {
					return uint16(p.ContainerPort)
				}
			}
		}
		return 0
	}
	if port.TargetPort.IntVal != 0 {
		return uint16(port.TargetPort.IntVal)
	}
	return uint16(port.Port)
}
