package state

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
	"unique"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/mesh/authz"
)

// world makes random objects out of few names, so that they collide and refer to each other.
type world struct{ *rand.Rand }

func pick[T any](w world, from ...T) T { return from[w.IntN(len(from))] }

func (w world) key() cluster.Key {
	return cluster.Key{Namespace: pick(w, "a", "b", "istio-system"), Name: pick(w, "x", "y", "z", "v", "w")}
}

func (w world) labels() cluster.Labels {
	m := map[string]string{}
	for _, name := range []string{"app", "tier"} {
		if w.IntN(3) > 0 {
			m[name] = pick(w, "1", "2")
		}
	}
	return cluster.LabelsOf(m)
}

func (w world) addr(prefix string) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("%s.%d", prefix, w.IntN(6)))
}

func (w world) created() time.Time { return time.Unix(int64(w.IntN(3)), 0) }

func (w world) node() string { return pick(w, "n1", "n2", "") }

func (w world) object() cluster.Object {
	switch w.IntN(42) {
	case 39:
		return w.backendTraffic()
	case 40, 41:
		return w.waypointPolicy()
	case 33, 34:
		return w.virtualService()
	case 31, 32:
		return w.destinationRule()
	case 35, 36:
		return w.requestAuthentication()
	case 37:
		return w.keySet()
	case 38:
		return w.telemetry()
	case 24, 25, 26, 27:
		return w.route()
	case 28, 29:
		return w.backendTLS()
	case 30:
		b := &cluster.Bundle{Key: w.key()}
		if text := pick(w, "", "one", "two"); text != "" {
			b.Certificates = unique.Make(text)
		}
		return b
	case 18, 19, 20:
		return w.gateway()
	case 21, 22:
		return &cluster.Deployment{Key: w.key(), Gateway: pick(w, "x", "y", "z"), Replicas: int32(w.IntN(3)), Ready: int32(w.IntN(2)), Deleting: w.IntN(8) == 0}
	case 23:
		return &cluster.GatewayClass{Name: pick(w, "c1", "c2"), Controller: pick(w, api.ControllerWaypoint, api.ControllerWaypoint, "other"), WaypointFor: pick(w, "", "all")}
	case 14, 15:
		return w.serviceEntry()
	case 16, 17:
		we := &cluster.WorkloadEntry{Key: w.key(), Created: w.created(), Labels: w.labels(), Generation: int64(w.IntN(2))}
		if w.IntN(4) > 0 {
			we.Addr = w.addr(pick(w, "10.1.0", "10.2.0", "10.3.0", "10.4.0"))
		} else {
			we.Host = "vm.example"
		}
		we.Labels, we.Bound = w.withUse(we.Labels), w.bound()
		if w.IntN(2) == 0 {
			we.Ports = []cluster.NamedPort{{Name: "named", Port: 9001}}
		}
		return we
	case 12, 13:
		return w.authorizationPolicy()
	case 0:
		return &cluster.Namespace{Name: pick(w, "a", "b", "istio-system"), Distribution: pick(w, "", "PreferClose", "wrong"), Labels: w.labels(), Waypoint: w.use(), Required: pick(w, "", "", "true")}
	case 1:
		return &cluster.Node{Name: pick(w, "n1", "n2"), Locality: cluster.Locality{Zone: pick(w, "", "z1", "z2")}, Addrs: []netip.Addr{w.addr("10.3.0")}}
	case 2, 3:
		pa := &cluster.PeerAuthentication{Key: w.key(), Created: w.created(), Mode: w.mode()}
		if w.IntN(2) == 0 {
			pa.Selector = w.labels()
		}
		if w.IntN(2) == 0 {
			pa.Ports = []cluster.PortMTLS{{Port: 1, Mode: w.mode()}, {Port: 2, Mode: w.mode()}}
		}
		return pa
	case 4, 5:
		svc := &cluster.Service{
			Key: w.key(), Created: w.created(), Selector: w.labels(), External: w.IntN(6) == 0,
			ClusterIPs: []netip.Addr{w.addr("10.2.0")}, Ports: []cluster.ServicePort{{Name: "p", Port: 80, Target: uint16(80 + w.IntN(2))}, {Name: "q", Port: 81, TargetName: "named"}},
		}
		svc.Waypoint, svc.Bound, svc.Required = w.use(), w.bound(), pick(w, "", "", "true", "false")
		if w.IntN(3) == 0 {
			svc.Gateway = svc.Name
		}
		if w.IntN(2) == 0 {
			svc.LoadBalancerIPs = []netip.Addr{w.addr("10.3.0"), w.addr("10.2.0")}
		}
		return svc
	case 6, 7:
		slice := &cluster.EndpointSlice{Key: w.key(), Service: pick(w, "x", "y", ""), Ports: []cluster.SlicePort{{Name: "p", Port: uint16(7000 + w.IntN(2))}}}
		for range w.IntN(4) {
			e := cluster.Endpoint{Addr: w.addr("10.1.0"), Node: w.node(), Ready: w.IntN(2) == 0}
			if w.IntN(3) == 0 {
				e.Pod = w.key().Name
			}
			slice.Endpoints = append(slice.Endpoints, e)
		}
		return slice
	}
	p := &cluster.Pod{
		Key: w.key(), Node: w.node(), ServiceAccount: pick(w, "s", "t"), Labels: w.labels(), Ready: w.IntN(2) == 0,
		Terminal: w.IntN(8) == 0, Deleting: w.IntN(4) == 0, Created: w.created(), HostNetwork: w.IntN(8) == 0, Redirected: w.IntN(2) == 0, Redirection: pick(w, "enabled", "odd"),
	}
	p.Labels = w.withUse(p.Labels)
	for range w.IntN(3) {
		if a := w.addr("10.1.0"); !slices.Contains(p.IPs, a) {
			p.IPs = append(p.IPs, a)
		}
	}
	if w.IntN(2) == 0 {
		p.Ports = []cluster.NamedPort{{Name: "named", Port: 9000}}
	}
	return p
}

// use is what some say of their waypoint, and others leave unsaid.
func (w world) use() cluster.WaypointUse {
	u := pick(w, cluster.WaypointUse{}, cluster.WaypointUse{}, cluster.WaypointUse{Name: api.UseWaypointNone}, cluster.WaypointUse{Name: pick(w, "x", "y", "z")},
		cluster.WaypointUse{Name: pick(w, "x", "y", "z"), Namespace: pick(w, "a", "b")})
	if w.IntN(3) == 0 {
		u.Canary = cluster.Canary{Name: pick(w, "x", "y", "z"), Namespace: pick(w, "", "a"), Weight: pick(w, "", "30", "100", "101")}
	}
	return u
}

func (w world) withUse(ls cluster.Labels) cluster.Labels {
	m := map[string]string{}
	for _, l := range ls {
		m[l.Name()] = l.Value()
	}
	if use := w.use(); use.Name != "" {
		m[api.LabelUseWaypoint] = use.Name
		if use.Namespace != "" {
			m[api.LabelUseWaypointNamespace] = use.Namespace
		}
	}
	if w.IntN(10) == 0 {
		m[api.LabelGatewayManaged] = api.GatewayManagedWaypoint
	}
	return cluster.LabelsOf(m)
}

func (w world) bound() cluster.Condition {
	return pick(w, cluster.Condition{}, cluster.Condition{Type: api.ConditionWaypointBound, Status: "True", Reason: "WaypointAccepted"})
}

func (w world) ref() cluster.ObjectRef {
	k := w.key()
	k.Name = pick(w, "x", "y")
	return pick(w, cluster.ServiceRef(k), cluster.ServiceRef(k), cluster.ServiceRef(k), cluster.EntryRef(k))
}

func (w world) route() cluster.Object {
	r := &cluster.Route{
		Key: w.key(), Kind: pick(w, cluster.KindHTTPRoute, cluster.KindHTTPRoute, cluster.KindGRPCRoute, cluster.KindTCPRoute, cluster.KindTLSRoute), Created: w.created(), Generation: int64(w.IntN(3)),
	}
	if r.Kind == cluster.KindTLSRoute {
		r.Hostnames = pick(w, nil, []string{"a.example"}, []string{"a.example", "*.example"}, []string{"*.example", "b.example"})
	}
	r.Parents = []cluster.RouteParent{{Ref: cluster.ServiceRef(cluster.Key{Namespace: r.Namespace, Name: pick(w, "x", "y")})}}
	for range w.IntN(2) {
		r.Parents = append(r.Parents, cluster.RouteParent{Ref: pick(w, w.ref(), w.ref(), w.ref(), cluster.GatewayRef(w.key())), Port: pick[uint16](w, 0, 0, 80, 99)})
	}
	rule := cluster.RouteRule{Matches: []cluster.RouteMatch{{}}}
	for range w.IntN(3) {
		rule.Backends = append(rule.Backends, cluster.RouteBackend{BackendRef: cluster.BackendRef{Ref: w.ref(), Port: 80}, Weight: uint32(w.IntN(3))})
	}
	r.Rules = []cluster.RouteRule{rule}
	return r
}

func (w world) virtualService() cluster.Object {
	v := &cluster.VirtualService{
		Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)),
		Hosts: []string{pick(w, "x.a", "y.a", "x.b", "h1.example")},
	}
	if w.IntN(4) > 0 {
		v.Fault = &cluster.Injection{Status: uint32(500 + w.IntN(2)), AbortPerMillion: 10}
	}
	return v
}

func (w world) destinationRule() cluster.Object {
	r := &cluster.DestinationRule{
		Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)), Selective: w.IntN(6) == 0,
		Host:     pick(w, "x", "y", "x.a.svc.cluster.local", "y.b.svc.cluster.local", "*.a.svc.cluster.local", "*.local", "*", "*.example", "e.example", ""),
		ExportTo: pick(w, nil, nil, []string{"*"}, []string{"."}, []string{"b"}),
	}
	if w.IntN(6) > 0 {
		r.Policy = &cluster.TrafficPolicy{Balancer: pick(w, cluster.BalanceRandom, cluster.BalanceRoundRobin), Pool: cluster.ConnectionPool{MaxRequests: uint32(w.IntN(3))}}
		if w.IntN(3) == 0 {
			r.Ports = []cluster.PortPolicy{{Port: 80, Policy: &cluster.TrafficPolicy{}}}
		}
	}
	return r
}

func (w world) telemetry() cluster.Object {
	t := &cluster.Telemetry{Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)), Selective: w.IntN(6) == 0}
	for range w.IntN(3) {
		t.Targets = append(t.Targets, authz.Target{Kind: pick(w, authz.TargetService, authz.TargetServiceEntry, authz.TargetGateway, authz.TargetGatewayClass),
			Name: pick(w, w.key().Name, authz.WaypointClass)})
	}
	if w.IntN(6) > 0 {
		sampling := float64(w.IntN(3))
		disabled := w.IntN(4) == 0
		t.Tracing = &cluster.Tracing{Provider: pick(w, "", "otel", "other", "none"), Sampling: pick(w, nil, &sampling), Disabled: pick(w, nil, nil, &disabled)}
	}
	for range w.IntN(3) {
		t.Logging = append(t.Logging, cluster.Logging{Providers: pick(w, nil, []string{"envoy"}, []string{"otel"}), Disabled: w.IntN(4) == 0, Filter: pick(w, "", "response.code >= 400")})
	}
	return t
}

func (w world) waypointPolicy() cluster.Object {
	p := &cluster.WaypointPolicy{Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)), Limit: &cluster.RateLimit{
		Requests: uint32(1 + w.IntN(3)), Burst: 9, Interval: time.Second, PerConnection: w.IntN(4) == 0}}
	for range 1 + w.IntN(2) {
		t := cluster.PolicyTarget{Ref: w.ref(), Section: pick(w, "", "", "http", "tcp")}
		if w.IntN(3) == 0 {
			t = cluster.PolicyTarget{Ref: cluster.GatewayRef(w.key())}
		}
		p.Targets = append(p.Targets, t)
	}
	if w.IntN(6) == 0 {
		p.Faults = []string{"a fault"}
	}
	return p
}

func (w world) backendTLS() cluster.Object {
	p := &cluster.BackendTLSPolicy{Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)), Hostname: pick(w, "a.example", "b.example"), System: w.IntN(3) == 0}
	for range 1 + w.IntN(2) {
		section := pick(w, "", "", "http", "tcp")
		p.Targets = append(p.Targets, cluster.PolicyTarget{Ref: w.ref(), Section: section})
	}
	for !p.System && len(p.Authorities) < 2 {
		p.Authorities = append(p.Authorities, cluster.Key{Namespace: p.Namespace, Name: w.key().Name})
	}
	if w.IntN(6) == 0 {
		p.Faults = []string{"a fault"}
	}
	return p
}

func (w world) gateway() cluster.Object {
	g := &cluster.Gateway{
		Key: w.key(), Created: w.created(), Generation: int64(w.IntN(3)), Deleting: w.IntN(8) == 0, Class: pick(w, "c1", "c2"), Programmed: w.IntN(3) > 0,
		Revision: pick(w, "", "", "default", "other"), WaypointFor: pick(w, "", "", "service", "workload", "all", "none"),
	}
	if w.IntN(6) > 0 {
		selector, err := labels.Parse("app=1")
		if err != nil {
			panic(err)
		}
		g.Listeners = []cluster.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE", From: pick(w, "Same", "All", "Selector"), Selector: selector}}
	}
	if w.IntN(6) == 0 {
		g.Addresses = []cluster.GatewayAddress{{Type: pick(w, "IPAddress", "Hostname", "odd"), Value: pick(w, "10.9.9.9", "far.example")}}
	}
	return g
}

func (w world) serviceEntry() cluster.Object {
	e := &cluster.ServiceEntry{
		Key: w.key(), Created: w.created(), Labels: w.labels(), AutoAddress: w.IntN(2) == 0, Generation: int64(w.IntN(2)),
		Resolution: pick(w, cluster.ResolutionStatic, cluster.ResolutionStatic, cluster.ResolutionDNS, cluster.ResolutionNone),
		Visibility: pick(w, cluster.VisiblePublic, cluster.VisiblePublic, cluster.VisibleNamespace, cluster.VisibleNone),
		Ports:      []cluster.ServicePort{{Name: "p", Port: 80, Target: uint16(80 + w.IntN(2))}}, Distribution: pick(w, "", "PreferClose", "wrong"),
	}
	e.Waypoint, e.Bound, e.Required = w.use(), w.bound(), pick(w, "", "", "true", "false")
	for _, h := range []string{"x.a.svc.cluster.local", "y.b.svc.cluster.local", "h1.example", "h2.example", "*.w.example"} {
		if w.IntN(3) == 0 {
			e.Hosts = append(e.Hosts, h)
		}
	}
	if w.IntN(2) == 0 {
		a := w.addr(pick(w, "10.2.0", "10.3.0"))
		e.Addresses = []netip.Prefix{netip.PrefixFrom(a, 32), netip.MustParsePrefix("10.8.0.0/16")}
	}
	for _, h := range e.Hosts {
		e.Assigned = append(e.Assigned, cluster.HostAddr{Host: h, Addr: w.addr("240.240.0")})
	}
	if w.IntN(2) == 0 {
		e.Selector = w.labels()
		return e
	}
	for range w.IntN(3) {
		ep := cluster.EntryEndpoint{Addr: w.addr(pick(w, "10.1.0", "10.2.0", "10.3.0", "10.4.0"))}
		if w.IntN(2) == 0 {
			ep.Ports = []cluster.NamedPort{{Name: "p", Port: uint16(7000 + w.IntN(2))}}
		}
		e.Endpoints = append(e.Endpoints, ep)
	}
	return e
}

func (w world) authorizationPolicy() cluster.Object {
	key := w.key()
	spec := map[string]any{"action": pick(w, "ALLOW", "DENY", "AUDIT", "CUSTOM", "CUSTOM"), "provider": map[string]any{"name": pick(w, "service", "entry", "none")}, "rules": []any{map[string]any{
		"to": []any{map[string]any{"operation": pick(w, map[string]any{"ports": []any{"80"}}, map[string]any{"methods": []any{"GET"}})}},
	}}}
	if w.IntN(3) > 0 {
		spec["selector"] = map[string]any{"matchLabels": pick(w, map[string]any{"app": "1"}, map[string]any{"app": "2", "tier": "1"})}
	}
	if w.IntN(2) == 0 {
		delete(spec, "selector")
		spec["targetRefs"] = w.targetRefs()
	}
	return cluster.AuthorizationPolicyOf(&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"namespace": key.Namespace, "name": key.Name, "generation": int64(w.IntN(3))}, "spec": spec,
	}})
}

// providers are external authorizers: a Kubernetes service, and the host of a ServiceEntry.
func providers(service, entry string) []*meshv1alpha1.MeshConfig_ExtensionProvider {
	of := func(name, host string) *meshv1alpha1.MeshConfig_ExtensionProvider {
		return &meshv1alpha1.MeshConfig_ExtensionProvider{Name: name, Provider: &meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExtAuthzGrpc{
			EnvoyExtAuthzGrpc: &meshv1alpha1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider{Service: host, Port: 80}}}
	}
	tracer := func(name, host string) *meshv1alpha1.MeshConfig_ExtensionProvider {
		return &meshv1alpha1.MeshConfig_ExtensionProvider{Name: name, Provider: &meshv1alpha1.MeshConfig_ExtensionProvider_Opentelemetry{
			Opentelemetry: &meshv1alpha1.MeshConfig_ExtensionProvider_OpenTelemetryTracingProvider{Service: host, Port: 80}}}
	}
	return []*meshv1alpha1.MeshConfig_ExtensionProvider{of("service", service), of("entry", entry), tracer("otel", service), tracer("other", entry)}
}

func (w world) mode() cluster.MTLSMode {
	return pick(w, cluster.MTLSUnset, cluster.MTLSDisable, cluster.MTLSPermissive, cluster.MTLSStrict)
}
