package state

import (
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// static translates what depends on the settings alone.
func (c *collector) static() {
	contents := map[string]proto.Message{}
	for _, a := range translate.Static(c.state.mesh) {
		contents[translate.AuthorizationName(a)] = a
	}
	o := object{kind: cluster.KindConfigMap}
	c.many(o, resource.Authorization, contents, nil)
	c.one(o, resource.Name{Type: resource.Settings, Name: extension.Mesh}, translate.Settings(c.state.mesh), nil)
}

func (c *collector) pod(k cluster.Key) {
	s := c.state
	name := resource.Name{Type: resource.Address, Name: translate.PodUID(s.mesh, k)}
	p := s.pods[k]
	ref := cluster.ObjectRef{Kind: cluster.KindPod, Key: k}
	if p == nil {
		c.reside(ref, name.Name, nil, translate.Binding{}, nil)
		c.one(object{cluster.KindPod, k}, name, nil, nil)
		return
	}
	attached, entries := s.attachments(p), c.chosen(p.Namespace, p.Labels, p)
	bound := s.bind(translate.PodBind(p, s.namespaceOf(p.Namespace)))
	w, problems := translate.Pod(s.mesh, translate.PodInput{
		Pod:      p,
		Node:     s.nodes[p.Node],
		Services: attached,
		Entries:  entries,
		Policies: append(s.policiesOf(p.Namespace, p.Labels), c.required(translate.EndpointOf{Namespace: p.Namespace, Services: translate.ServicesOf(attached), Entries: entries})...),
		Others:   s.others(p),
		Waypoint: bound,
	})
	if w == nil {
		c.reside(ref, name.Name, nil, translate.Binding{}, nil)
		c.one(object{cluster.KindPod, k}, name, nil, problems)
		return
	}
	c.one(object{cluster.KindPod, k}, name, address(w), problems)
	c.reside(ref, name.Name, w, bound, p)
}

// bindingOf is the decision on the waypoint of a service.
func (s *State) bindingOf(svc *cluster.Service) translate.Binding {
	if svc.External {
		return translate.Binding{}
	}
	return s.bind(translate.ServiceBind(svc, s.namespaceOf(svc.Namespace)))
}

// required names the authorisations of services and ServiceEntries that an endpoint has to obey.
func (c *collector) required(e translate.EndpointOf) []string {
	return e.Policies(c.state.bindingOf, func(e *cluster.ServiceEntry) translate.Binding { return c.entryInput(e).Waypoint })
}

// others lists pods that have an address of p too; p may be among them.
func (s *State) others(p *cluster.Pod) []*cluster.Pod {
	var out []*cluster.Pod
	for _, ip := range p.IPs {
		if at := s.podsAt[ip]; len(at) > 1 || len(at) == 1 && at[0] != p {
			out = append(out, at...)
		}
	}
	return out
}

func address(w *workload.Workload) *workload.Address {
	return &workload.Address{Type: &workload.Address_Workload{Workload: w}}
}

// attachments lists the services that a pod is an endpoint of.
func (s *State) attachments(p *cluster.Pod) []translate.Attachment {
	var out []translate.Attachment
	if n := s.namespaces[p.Namespace]; n != nil {
		for _, label := range p.Labels {
			for k := range n.selecting[label] {
				if svc := s.services[k]; translate.Selects(svc, p) {
					out = append(out, translate.Attachment{Service: svc})
				}
			}
		}
	}
	if !p.Present() {
		return out
	}
	slices := set[cluster.Key]{}
	for k := range s.slicesNamed[p.Key] {
		slices[k] = struct{}{}
	}
	if !p.HostNetwork {
		for _, ip := range p.IPs {
			for k := range s.slicesAt[ip] {
				slices[k] = struct{}{}
			}
		}
	}
	for k := range slices {
		slice := s.slices[k]
		if svc := s.services[slice.ServiceKey()]; svc != nil && !svc.External {
			out = append(out, translate.Attachment{Service: svc, Slice: slice})
		}
	}
	translate.SortAttachments(out)
	return out
}

// policiesOf names the authorisations that select a workload of a namespace, with these labels.
func (s *State) policiesOf(own string, labels cluster.Labels) []string {
	var selected *cluster.PeerAuthentication
	look := func(namespace string) {
		n := s.namespaces[namespace]
		if n == nil {
			return
		}
		for k := range n.policies {
			pa := s.policies[k]
			if len(pa.Selector) > 0 && labels.Contains(pa.Selector) && (selected == nil || translate.Older(pa, selected) < 0) {
				selected = pa
			}
		}
	}
	look(own)
	if own != s.mesh.RootNamespace {
		look(s.mesh.RootNamespace)
	}
	inherited := translate.Inherited(s.widest(s.mesh.RootNamespace), s.widest(own))
	return translate.PoliciesOf(translate.PeerAuthenticationPolicies(s.mesh, inherited, selected), s.authorizing(own, labels))
}

func (c *collector) service(k cluster.Key) {
	s := c.state
	name := resource.Name{Type: resource.Address, Name: translate.ServiceName(s.mesh, k)}
	svc := s.services[k]
	if svc == nil || svc.External {
		var problems []translate.Problem
		if svc == nil {
			s.unbound(object{cluster.KindService, k})
		} else {
			s.tellBound(translate.ServiceStatus(svc, translate.Binding{}))
			_, problems = translate.Service(s.mesh, translate.ServiceInput{Service: svc})
		}
		c.requires(cluster.ServiceRef(k), translate.Binding{}, &problems)
		if s.ownerOf(k.Namespace, translate.Hostname(s.mesh, k)) != nil {
			c.report(object{cluster.KindService, k}, problems) // what is of that name now is host's to say
			return
		}
		c.one(object{cluster.KindService, k}, name, nil, problems)
		return
	}
	in := c.serviceInput(svc)
	s.tellBound(translate.ServiceStatus(svc, in.Waypoint))
	out, problems := translate.Service(s.mesh, in)
	c.requires(cluster.ServiceRef(k), in.Waypoint, &problems)
	c.one(object{cluster.KindService, k}, name, &workload.Address{Type: &workload.Address_Service{Service: out}}, problems)
}

// requires tells whom the endpoints of a service, or of a ServiceEntry, let in.
func (c *collector) requires(ref cluster.ObjectRef, b translate.Binding, problems *[]translate.Problem) {
	name := resource.Name{Type: resource.Authorization, Name: translate.RequiredName(ref)}
	if a := translate.RequiredPolicy(c.state.mesh, ref, b); a == nil || !c.put(name, a, object{ref.Kind, ref.Key}, problems) {
		c.remove(name)
	}
}

// serviceInput gathers what a translation of a service needs.
func (c *collector) serviceInput(svc *cluster.Service) translate.ServiceInput {
	s := c.state
	in := translate.ServiceInput{Service: svc, Namespace: s.namespaceOf(svc.Namespace)}
	if !svc.External {
		in.Waypoint = s.bind(translate.ServiceBind(svc, in.Namespace))
	}
	for _, claim := range translate.Claims(svc) {
		if rival, granted := translate.Settle(claim, s.rivals(claim)); !granted {
			if in.Rivals == nil {
				in.Rivals = map[netip.Addr]translate.Rival{}
			}
			in.Rivals[claim.Addr] = rival
		}
	}
	return in
}

// slice translates the endpoints of a slice that are no pods.
func (c *collector) slice(k cluster.Key) {
	s := c.state
	slice := s.slices[k]
	contents := map[string]proto.Message{}
	var problems []translate.Problem
	if slice != nil {
		problems = translate.Faults(slice, slice.Faults)
		if svc := s.services[slice.ServiceKey()]; svc != nil && !svc.External {
			at := translate.Attachment{Service: svc, Slice: slice}
			for _, e := range slice.Endpoints {
				if translate.Standalone(e) && len(s.podsAt[e.Addr]) == 0 {
					w := translate.Endpoint(s.mesh, at, e, s.nodes[e.Node])
					contents[w.Uid] = address(w)
				}
			}
		}
	}
	c.many(object{cluster.KindEndpointSlice, k}, resource.Address, contents, problems)
}

func (c *collector) policy(k cluster.Key) {
	s := c.state
	contents := map[string]proto.Message{}
	var problems []translate.Problem
	if p := s.policies[k]; p != nil {
		as, found := translate.PeerAuthentication(p)
		problems = found
		for _, a := range as {
			contents[translate.AuthorizationName(a)] = a
		}
		if first := s.widest(k.Namespace); len(p.Selector) == 0 && first != p {
			problems = append(problems, translate.Shadowed(p, first))
		}
	}
	c.many(object{cluster.KindPeerAuthentication, k}, resource.Authorization, contents, problems)
}
