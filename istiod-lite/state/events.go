package state

import (
	"slices"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// Upsert takes a new or changed object. Objects of kinds that nothing follows from are ignored.
func (s *State) Upsert(o cluster.Object) {
	switch o := o.(type) {
	case *cluster.Pod:
		s.setPod(o.Key, o)
	case *cluster.Service:
		s.setService(o.Key, o)
	case *cluster.EndpointSlice:
		s.setSlice(o.Key, o)
	case *cluster.Node:
		s.setNode(o.Name, o)
	case *cluster.Namespace:
		s.setNamespace(o.Name, o)
	case *cluster.PeerAuthentication:
		s.setPolicy(o.Key, o)
	case *cluster.AuthorizationPolicy:
		s.setAuthorization(o.Key, o)
	case *cluster.RequestAuthentication:
		s.setAuthentication(o.Key, o)
	case *cluster.KeySet:
		s.setKeySet(o.ObjectKey(), o)
	case *cluster.ServiceEntry:
		s.setEntry(o.Key, o)
	case *cluster.WorkloadEntry:
		s.setWorkloadEntry(o.Key, o)
	case *cluster.Gateway:
		s.setGateway(o.Key, o)
	case *cluster.GatewayClass:
		s.setClass(o.Name, o)
	case *cluster.Deployment:
		s.setDeployment(o.Key, o)
	case *cluster.Mesh:
		s.setMesh(o.Name, o)
	case *cluster.Route:
		s.setRoute(object{o.Kind, o.Key}, o)
	case *cluster.DestinationRule:
		s.setRule(o.Key, o)
	case *cluster.VirtualService:
		s.setVirtualService(o.Key, o)
	case *cluster.BackendTLSPolicy:
		s.setBackendTLS(o.Key, o)
	case *cluster.Telemetry:
		s.setTelemetry(o.Key, o)
	case *cluster.BackendTrafficPolicy:
		s.setBackendTraffic(o.Key, o)
	case *cluster.WaypointPolicy:
		s.setWaypointPolicy(o.Key, o)
	case *cluster.Bundle:
		s.setBundle(o.Key, o)
	}
}

// Delete takes an object away.
func (s *State) Delete(kind cluster.Kind, key cluster.Key) {
	switch kind {
	case cluster.KindPod:
		s.setPod(key, nil)
	case cluster.KindService:
		s.setService(key, nil)
	case cluster.KindEndpointSlice:
		s.setSlice(key, nil)
	case cluster.KindNode:
		s.setNode(key.Name, nil)
	case cluster.KindNamespace:
		s.setNamespace(key.Name, nil)
	case cluster.KindPeerAuthentication:
		s.setPolicy(key, nil)
	case cluster.KindAuthorizationPolicy:
		s.setAuthorization(key, nil)
	case cluster.KindRequestAuthentication:
		s.setAuthentication(key, nil)
	case cluster.KindKeySet:
		s.setKeySet(key, nil)
	case cluster.KindServiceEntry:
		s.setEntry(key, nil)
	case cluster.KindWorkloadEntry:
		s.setWorkloadEntry(key, nil)
	case cluster.KindGateway:
		s.setGateway(key, nil)
	case cluster.KindGatewayClass:
		s.setClass(key.Name, nil)
	case cluster.KindMesh:
		s.setMesh(key.Name, nil)
	case cluster.KindDeployment:
		s.setDeployment(key, nil)
	case cluster.KindHTTPRoute, cluster.KindGRPCRoute, cluster.KindTLSRoute, cluster.KindTCPRoute:
		s.setRoute(object{kind, key}, nil)
	case cluster.KindDestinationRule:
		s.setRule(key, nil)
	case cluster.KindVirtualService:
		s.setVirtualService(key, nil)
	case cluster.KindBackendTLSPolicy:
		s.setBackendTLS(key, nil)
	case cluster.KindTelemetry:
		s.setTelemetry(key, nil)
	case cluster.KindBackendTraffic:
		s.setBackendTraffic(key, nil)
	case cluster.KindWaypointPolicy:
		s.setWaypointPolicy(key, nil)
	case cluster.KindBundle:
		s.setBundle(key, nil)
	}
}

// Replace takes all objects of a kind: those that it does not name are gone.
func (s *State) Replace(kind cluster.Kind, objects []cluster.Object) {
	named := make(set[cluster.Key], len(objects))
	for _, o := range objects {
		named[o.ObjectKey()] = struct{}{}
	}
	for _, key := range s.keys(kind) {
		if _, ok := named[key]; !ok {
			s.Delete(kind, key)
		}
	}
	for _, o := range objects {
		s.Upsert(o)
	}
}

func (s *State) keys(kind cluster.Kind) []cluster.Key {
	var out []cluster.Key
	switch kind {
	case cluster.KindPod:
		out = keysOf(s.pods)
	case cluster.KindService:
		out = keysOf(s.services)
	case cluster.KindEndpointSlice:
		out = keysOf(s.slices)
	case cluster.KindPeerAuthentication:
		out = keysOf(s.policies)
	case cluster.KindAuthorizationPolicy:
		out = keysOf(s.authorizations)
	case cluster.KindRequestAuthentication:
		out = keysOf(s.authentications)
	case cluster.KindKeySet:
		out = keysOf(s.keySets)
	case cluster.KindServiceEntry:
		out = keysOf(s.entries)
	case cluster.KindWorkloadEntry:
		out = keysOf(s.workloadEntries)
	case cluster.KindGateway:
		out = keysOf(s.bindings.gateways)
	case cluster.KindDeployment:
		out = keysOf(s.bindings.deployments)
	case cluster.KindHTTPRoute, cluster.KindGRPCRoute, cluster.KindTLSRoute, cluster.KindTCPRoute:
		for o := range s.views.routes {
			if o.kind == kind {
				out = append(out, o.key)
			}
		}
	case cluster.KindDestinationRule:
		out = keysOf(s.views.rules)
	case cluster.KindVirtualService:
		for _, all := range s.views.virtual {
			out = append(out, keysOf(all)...)
		}
	case cluster.KindBackendTLSPolicy:
		out = keysOf(s.views.backendTLS)
	case cluster.KindTelemetry:
		out = keysOf(s.views.telemetries)
	case cluster.KindBackendTraffic:
		out = keysOf(s.views.traffic)
	case cluster.KindWaypointPolicy:
		out = keysOf(s.views.refining)
	case cluster.KindBundle:
		out = keysOf(s.views.bundles)
	case cluster.KindMesh:
		for name := range s.bindings.meshes {
			out = append(out, cluster.Key{Name: name})
		}
	case cluster.KindGatewayClass:
		for name := range s.bindings.classes {
			out = append(out, cluster.Key{Name: name})
		}
	case cluster.KindNode:
		for name := range s.nodes {
			out = append(out, cluster.Key{Name: name})
		}
	case cluster.KindNamespace:
		for name, n := range s.namespaces {
			if n.object != nil {
				out = append(out, cluster.Key{Name: name})
			}
		}
	}
	return out
}

func keysOf[T any](m map[cluster.Key]T) []cluster.Key {
	out := make([]cluster.Key, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

// group returns the namespace of that name, made if need be.
func (s *State) group(name string) *namespace {
	n := s.namespaces[name]
	if n == nil {
		n = &namespace{
			pods:        set[cluster.Key]{},
			services:    set[cluster.Key]{},
			selecting:   map[cluster.Label]set[cluster.Key]{},
			policies:    set[cluster.Key]{},
			authorizing: map[cluster.Label]set[cluster.Key]{},

			entries:         set[cluster.Key]{},
			choosing:        map[cluster.Label]set[cluster.Key]{},
			workloadEntries: set[cluster.Key]{},
		}
		s.namespaces[name] = n
	}
	return n
}

// ungroup forgets a namespace when nothing is left of it.
func (s *State) ungroup(name string) {
	n := s.namespaces[name]
	if n != nil && n.object == nil && len(n.pods)+len(n.services)+len(n.policies)+len(n.authorizing)+len(n.entries)+len(n.workloadEntries) == 0 {
		delete(s.namespaces, name)
	}
}

// setPod takes a pod, nil if it is gone. On the pod itself depend the slices, by hand, that have its address or name.
func (s *State) setPod(key cluster.Key, p *cluster.Pod) {
	old := s.pods[key]
	if old == nil && p == nil || old != nil && p != nil && old.Equal(p) {
		return
	}
	s.dirty.pods[key] = struct{}{}
	var was, is cluster.WaypointUse
	if old != nil {
		was = cluster.UseOf(old.Labels)
	}
	if p != nil {
		is = cluster.UseOf(p.Labels)
	}
	s.use(object{cluster.KindPod, key}, was, is)
	if p == nil {
		delete(s.pods, key)
		delete(s.group(key.Namespace).pods, key)
		s.ungroup(key.Namespace)
	} else {
		s.pods[key] = p
		if old == nil {
			s.group(key.Namespace).pods[key] = struct{}{}
		}
	}
	// Most changes of a pod change neither its node nor its place.
	if old == nil || p == nil || old.Node != p.Node {
		if old != nil {
			drop(s.podsOnNode, old.Node, key)
		}
		if p != nil {
			add(s.podsOnNode, p.Node, key)
		}
	}
	s.placePod(old, p)
	if !samePlace(old, p) {
		s.touchSlicesOf(old)
		s.touchSlicesOf(p)
	}
	if !sameClaim(old, p) {
		s.touchNeighbours(old)
		s.touchNeighbours(p)
	}
}

// samePlace reports whether both are found at the same addresses, or neither at any.
func samePlace(a, b *cluster.Pod) bool {
	if a.Present() != b.Present() {
		return false
	}
	return !a.Present() || a.HostNetwork == b.HostNetwork && slices.Equal(a.IPs, b.IPs)
}

// sameClaim reports whether both have the same right to the same addresses.
func sameClaim(a, b *cluster.Pod) bool {
	return samePlace(a, b) && (!a.HasPlace() || a.Deleting == b.Deleting && a.Created.Equal(b.Created))
}

// touchNeighbours marks the pods that have, or had, an address with p in common.
func (s *State) touchNeighbours(p *cluster.Pod) {
	if !p.HasPlace() {
		return
	}
	for _, ip := range p.IPs {
		for _, o := range s.podsAt[ip] {
			s.dirty.pods[o.Key] = struct{}{}
		}
	}
}

// placePod takes the pod p in the place of old; either may be nil or have no place.
func (s *State) placePod(old, p *cluster.Pod) {
	if old.HasPlace() && samePlace(old, p) {
		for _, ip := range p.IPs {
			at := s.podsAt[ip]
			at[slices.Index(at, old)] = p
		}
		return
	}
	if old.HasPlace() {
		for _, ip := range old.IPs {
			rest := slices.DeleteFunc(s.podsAt[ip], func(o *cluster.Pod) bool { return o == old })
			if len(rest) == 0 {
				delete(s.podsAt, ip)
			} else {
				s.podsAt[ip] = rest
			}
		}
	}
	if p.HasPlace() {
		for _, ip := range p.IPs {
			s.podsAt[ip] = append(s.podsAt[ip], p)
		}
	}
}

func (s *State) touchSlicesOf(p *cluster.Pod) {
	if p == nil {
		return
	}
	for k := range s.slicesNamed[p.Key] {
		s.dirty.slices[k] = struct{}{}
	}
	for _, ip := range p.IPs {
		for k := range s.slicesAt[ip] {
			s.dirty.slices[k] = struct{}{}
		}
		s.touchEntriesAt(ip)
	}
}

// setService takes a service, nil if it is gone. On it depend the pods that it selects or selected, its slices, and whoever
// claims one of its addresses.
func (s *State) setService(key cluster.Key, svc *cluster.Service) {
	old := s.services[key]
	if old == nil && svc == nil || old != nil && svc != nil && old.Equal(svc) {
		return
	}
	s.dirty.services[key] = struct{}{}
	group := s.group(key.Namespace)
	var was, is cluster.WaypointUse
	if old != nil {
		was = old.Waypoint
	}
	if svc != nil {
		is = svc.Waypoint
	}
	s.use(object{cluster.KindService, key}, was, is)
	if old != nil && old.Gateway != "" || svc != nil && svc.Gateway != "" || s.bindings.gateways[key] != nil {
		s.dirty.gateways[key] = struct{}{}
	}
	if old != nil {
		s.unclaim(translate.Claims(old))
		if len(old.Selector) > 0 {
			drop(group.selecting, old.Selector[0], key)
		}
	}
	if svc == nil {
		delete(s.services, key)
		delete(group.services, key)
	} else {
		s.services[key] = svc
		group.services[key] = struct{}{}
		s.claim(translate.Claims(svc))
		if len(svc.Selector) > 0 {
			add(group.selecting, svc.Selector[0], key)
		}
	}
	if !sameEndpoints(old, svc) {
		s.touchSelected(group, old, svc)
		s.dirty.contests[cluster.Key{Namespace: key.Namespace, Name: translate.Hostname(s.mesh, key)}] = struct{}{}
		for k := range s.slicesOf[key] {
			s.touchSlice(s.slices[k])
		}
	}
	s.ungroup(key.Namespace)
}

// sameEndpoints reports whether the two states of a service are the same to a workload.
func sameEndpoints(a, b *cluster.Service) bool {
	return a != nil && b != nil && a.External == b.External && a.Selector.Equal(b.Selector) && slices.Equal(a.Ports, b.Ports) &&
		a.Waypoint == b.Waypoint && a.Required == b.Required && a.Gateway == b.Gateway
}

func (s *State) touchSelected(group *namespace, services ...*cluster.Service) {
	for _, svc := range services {
		if svc == nil || len(svc.Selector) == 0 {
			continue
		}
		for k := range group.pods {
			if translate.Selects(svc, s.pods[k]) {
				s.dirty.pods[k] = struct{}{}
			}
		}
		s.touchWorkloadEntries(group, svc.Selector)
	}
}

// setSlice takes an endpoint slice, nil if it is gone. On it depend the pods that are, or were, its endpoints.
func (s *State) setSlice(key cluster.Key, slice *cluster.EndpointSlice) {
	old := s.slices[key]
	if old == nil && slice == nil || old != nil && slice != nil && old.Equal(slice) {
		return
	}
	s.dirty.slices[key] = struct{}{}
	if old != nil {
		s.touchSlice(old)
		drop(s.slicesOf, old.ServiceKey(), key)
		for _, e := range old.Endpoints {
			drop(s.slicesOn, e.Node, key)
			if e.Pod != "" {
				drop(s.slicesNamed, cluster.Key{Namespace: key.Namespace, Name: e.Pod}, key)
			} else {
				drop(s.slicesAt, e.Addr, key)
			}
		}
	}
	if slice == nil {
		delete(s.slices, key)
		return
	}
	s.slices[key] = slice
	add(s.slicesOf, slice.ServiceKey(), key)
	for _, e := range slice.Endpoints {
		add(s.slicesOn, e.Node, key)
		if e.Pod != "" {
			add(s.slicesNamed, cluster.Key{Namespace: key.Namespace, Name: e.Pod}, key)
		} else {
			add(s.slicesAt, e.Addr, key)
		}
	}
	s.touchSlice(slice)
}

// touchSlice marks a slice and the pods that it has as endpoints.
func (s *State) touchSlice(slice *cluster.EndpointSlice) {
	s.dirty.slices[slice.Key] = struct{}{}
	for _, e := range slice.Endpoints {
		if e.Pod != "" {
			s.dirty.pods[cluster.Key{Namespace: slice.Namespace, Name: e.Pod}] = struct{}{}
			continue
		}
		for _, p := range s.podsAt[e.Addr] {
			s.dirty.pods[p.Key] = struct{}{}
		}
	}
}

// setNode takes a node, nil if it is gone. Its place is that of its pods; its addresses are not a load balancer's.
func (s *State) setNode(name string, n *cluster.Node) {
	old := s.nodes[name]
	if old == nil && n == nil || old != nil && n != nil && old.Equal(n) {
		return
	}
	var was, is cluster.Locality
	if old != nil {
		was = old.Locality
		s.unclaim(translate.NodeClaims(old))
	}
	if n == nil {
		delete(s.nodes, name)
	} else {
		is = n.Locality
		s.nodes[name] = n
		s.claim(translate.NodeClaims(n))
	}
	if was == is {
		return
	}
	for k := range s.podsOnNode[name] {
		s.dirty.pods[k] = struct{}{}
	}
	for k := range s.slicesOn[name] {
		s.dirty.slices[k] = struct{}{}
	}
}

// setNamespace takes a namespace, nil if it is gone. Its services may take their traffic distribution from it.
func (s *State) setNamespace(name string, n *cluster.Namespace) {
	group := s.group(name)
	old := group.object
	group.object = n
	if old == nil && n != nil {
		s.namespaceObjects++
	} else if old != nil && n == nil {
		s.namespaceObjects--
	}
	if old == nil || n == nil || old.Distribution != n.Distribution {
		for k := range group.services {
			s.dirty.services[k] = struct{}{}
		}
		for k := range group.entries {
			s.touchEntry(k)
		}
	}
	s.useOfNamespace(name, old, n)
	s.ungroup(name)
}

// setPolicy takes a PeerAuthentication, nil if it is gone. One with a selector matters to the pods that it selects; one
// without, to its whole namespace, or to all of the mesh.
func (s *State) setPolicy(key cluster.Key, p *cluster.PeerAuthentication) {
	old := s.policies[key]
	if old == nil && p == nil || old != nil && p != nil && old.Equal(p) {
		return
	}
	before := s.widest(key.Namespace)
	group := s.group(key.Namespace)
	if p == nil {
		delete(s.policies, key)
		delete(group.policies, key)
	} else {
		s.policies[key] = p
		group.policies[key] = struct{}{}
	}
	s.dirty.policies[key] = struct{}{}
	for k := range group.policies { // which of them is shadowed may have changed
		s.dirty.policies[k] = struct{}{}
	}
	for _, changed := range []*cluster.PeerAuthentication{old, p} {
		if changed != nil && len(changed.Selector) > 0 {
			s.touchPods(key.Namespace, changed.Selector)
		}
	}
	if after := s.widest(key.Namespace); modeOf(before) != modeOf(after) {
		s.touchPods(key.Namespace, nil)
	}
	s.ungroup(key.Namespace)
}

func modeOf(p *cluster.PeerAuthentication) cluster.MTLSMode {
	if p == nil {
		return cluster.MTLSUnset
	}
	return p.Mode
}

// touchPods marks the pods and WorkloadEntries with the selector's labels in a policy's scope.
func (s *State) touchPods(namespace string, selector cluster.Labels) {
	if namespace == s.mesh.RootNamespace {
		for k, p := range s.pods {
			if p.Labels.Contains(selector) {
				s.dirty.pods[k] = struct{}{}
			}
		}
		for k, e := range s.workloadEntries {
			if e.Labels.Contains(selector) {
				s.dirty.workloadEntries[k] = struct{}{}
			}
		}
		return
	}
	s.touchWorkloadEntries(s.group(namespace), selector)
	for k := range s.group(namespace).pods {
		if s.pods[k].Labels.Contains(selector) {
			s.dirty.pods[k] = struct{}{}
		}
	}
}

// widest is the policy of a namespace that has no selector and counts.
func (s *State) widest(namespace string) *cluster.PeerAuthentication {
	n := s.namespaces[namespace]
	if n == nil {
		return nil
	}
	var first *cluster.PeerAuthentication
	for k := range n.policies {
		p := s.policies[k]
		if len(p.Selector) == 0 && (first == nil || translate.Older(p, first) < 0) {
			first = p
		}
	}
	return first
}
