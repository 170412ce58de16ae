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
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/survey"
	"github.com/ambit-mesh/ambit/mesh/authz"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/policy"
)

// Advice is what keeps traffic from going through a waypoint, and what to do; its names with -o are stable.
type Advice struct {
	Problem string `json:"problem"`
	Hint    string `json:"hint"`
}

// String is both in a line.
func (a Advice) String() string { return a.Problem + ". " + a.Hint }

// advise makes an Advice; the problem is a format for what.
func advise(hint, problem string, what ...any) Advice {
	return Advice{Problem: fmt.Sprintf(problem, what...), Hint: hint}
}

// advice says what keeps traffic from going through a waypoint.
func (f *facts) advice(gateway *gatewayv1.Gateway) []Advice {
	name := nameOf(gateway)
	subjects := f.of(name)
	advice := []Advice{}
	homes := map[string]bool{}
	for _, s := range subjects {
		homes[s.home()] = true
	}
	if len(subjects) == 0 {
		homes[gateway.Namespace] = true
		if trafficOf(gateway) != api.WaypointForNone {
			hint := fmt.Sprintf("Have all services of its namespace use it:  kubectl label namespace %s %s=%s", gateway.Namespace, api.LabelUseWaypoint, gateway.Name)
			advice = append(advice, advise(hint, "nothing uses waypoint %s", name))
		}
	}
	for _, namespace := range slices.Sorted(maps.Keys(homes)) {
		if !f.enrolled[namespace] {
			hint := fmt.Sprintf("Enrol it:  kubectl label namespace %s %s=%s", namespace, api.LabelDataplaneMode, api.DataplaneModeAmbient)
			advice = append(advice, advise(hint, "namespace %s is not in the mesh, so its pods do not call through a waypoint, and are called in plain", namespace))
		}
	}
	for _, s := range subjects {
		switch {
		case s.mismatched(gateway):
			hint := fmt.Sprintf("Change that:  ambit waypoint apply -n %s --name %s --for %s", gateway.Namespace, gateway.Name, api.WaypointForAll)
			advice = append(advice, advise(hint, "%s names waypoint %s, which is for %s traffic", s, name, trafficOf(gateway)))
		case s.refused != nil:
			hint := fmt.Sprintf("The control plane says:  %s", s.refused.Message)
			if s.shares {
				advice = append(advice, advise(hint, "%s does not share its traffic between waypoint %s and another (%s)", s, name, s.refused.Reason))
				break
			}
			advice = append(advice, advise(hint, "%s does not use waypoint %s (%s)", s, name, s.refused.Reason))
		}
	}
	return append(append(advice, f.refusals(name)...), f.bypasses(name)...)
}

// bypasses tells of connections to services that do not take the waypoint that the services use: they are older than that.
func (f *facts) bypasses(waypoint key) []Advice {
	var advice []Advice
	for _, service := range f.services[waypoint] {
		if service.uses.first != waypoint {
			continue // told of the other
		}
		var clients []string
		n := 0
		for _, c := range f.opened {
			if slices.Contains(service.vips, c.To.Addr().Unmap().String()) && !f.takes(service, c.By.Addr().Unmap()) {
				n++
				clients = append(clients, c.Pod)
			}
		}
		if n > 0 {
			slices.Sort(clients)
			hint := "Restart who has them open, to have them go through it:  " + few(slices.Compact(clients))
			advice = append(advice, advise(hint, "%s to Service %s stay at layer 4 until they end, since they are older than its use of waypoint %s",
				console.Plural(n, "connection"), service.key, waypoint))
		}
	}
	return advice
}

// takes tells whether an address is one of a service's waypoints.
func (f *facts) takes(s service, addr netip.Addr) bool {
	return slices.Contains(f.pods[s.uses.first], addr) || slices.Contains(f.pods[s.uses.canary], addr)
}

// mismatched tells whether a subject names a waypoint to which traffic of its kind is not sent.
func (s subject) mismatched(gateway *gatewayv1.Gateway) bool {
	traffic := trafficOf(gateway)
	wants := api.WaypointForService
	switch s.kind {
	case "namespace":
		return false // whatever of it the waypoint is for
	case "pod", "workloadentry":
		wants = api.WaypointForWorkload
	}
	return traffic != wants && traffic != api.WaypointForAll
}

// dangling names the labels that name no waypoint. Where one namespace was chosen, those in it and those that name it.
func (f *facts) dangling() []Advice {
	var advice []Advice
	for _, s := range f.subjects {
		if f.exists[s.uses] {
			continue
		}
		hint := fmt.Sprintf("Make it:  ambit waypoint apply -n %s --name %s", s.uses.namespace, s.uses.name)
		instead := "its traffic goes on at layer 4"
		if s.canary {
			instead = "none of its traffic goes there"
		}
		advice = append(advice, advise(hint, "%s has the label %s=%s, but there is no waypoint %s: %s", s, s.by(), s.uses.name, s.uses, instead))
	}
	return advice
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
func (f *facts) refusals(waypoint key) []Advice {
	peer := identity.Identity{TrustDomain: f.policies.trustDomain, Namespace: waypoint.namespace, ServiceAccount: f.accounts[waypoint]}
	var source netip.Addr
	if pods := f.pods[waypoint]; len(pods) > 0 {
		source = pods[len(pods)-1]
	}
	hint := fmt.Sprintf("Let the principal %s in too", strings.TrimPrefix(peer.String(), identity.Scheme))
	var advice []Advice
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
				if !d.Allowed() && !seen[d.Reason] {
					seen[d.Reason] = true
					advice = append(advice, advise(hint, "the pods of Service %s refuse waypoint %s: %s", service.key, waypoint, d.Reason))
				}
			}
		}
	}
	return advice
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
