package l7

import (
	"fmt"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// attachment is what routes make of one port of a host.
type attachment struct {
	// kind is which kind of route decides, "" if none does.
	kind cluster.Kind
	http bool
	// producers are the routes of the service's own namespace, of the kind that decides.
	producers []*cluster.Route
	// consumers are those of others, by name of the namespace.
	consumers []consumer
	// lost are routes that want the port and do not get it.
	lost map[*cluster.Route]loss
}

// consumer are routes of a namespace for its own clients. All are of one kind.
type consumer struct {
	namespace string
	routes    []*cluster.Route
}

// loss is why a route does not get a port.
type loss struct {
	reason  gatewayv1.RouteConditionReason
	message string
}

// reasonConflicted is why a route of another kind is refused. The Gateway API's text has a name for it, its Go package has not.
const reasonConflicted gatewayv1.RouteConditionReason = "Conflicted"

// precedence is the order of kinds that want the same port, best first.
var precedence = []cluster.Kind{cluster.KindGRPCRoute, cluster.KindHTTPRoute, cluster.KindTLSRoute, cluster.KindTCPRoute}

// attach settles which of the routes of a host have one of its ports. Only the owner of a service decides what is spoken on its
// ports: a consumer's route acts where HTTP is spoken anyway, since parsing what its owner meant as bytes would break all other
// clients.
func attach(h *Host, port cluster.ServicePort, routes []*cluster.Route) attachment {
	out := attachment{lost: map[*cluster.Route]loss{}}
	namespaces := map[string][]*cluster.Route{}
	for _, r := range routes {
		if !slices.ContainsFunc(r.Parents, func(p cluster.RouteParent) bool { return p.Ref == h.Ref && means(r, p, port) }) {
			continue
		}
		namespaces[r.Namespace] = append(namespaces[r.Namespace], r)
	}
	out.producers = out.settle(namespaces[h.Ref.Key.Namespace])
	if len(out.producers) > 0 {
		out.kind = out.producers[0].Kind
	}
	p := protocolOf(port)
	out.http = isHTTP(out.kind) || out.kind == "" && (p == http1 || p == http2)
	delete(namespaces, h.Ref.Key.Namespace)
	for namespace, all := range namespaces {
		all = slices.DeleteFunc(all, func(r *cluster.Route) bool {
			switch {
			case !isHTTP(r.Kind):
				out.lost[r] = loss{gatewayv1.RouteReasonUnsupportedValue, fmt.Sprintf("a %s has to be in the namespace of its Service", r.Kind)}
			case len(out.producers) > 0 && !out.http:
				out.lost[r] = loss{reasonConflicted, fmt.Sprintf("port %d of %s is that of %s %s, in the namespace of the Service", port.Port, h.Ref, out.kind, out.producers[0].Key)}
			case !out.http:
				out.lost[r] = loss{gatewayv1.RouteReasonUnsupportedProtocol, fmt.Sprintf("port %d of %s is not declared to be HTTP, which only its owner can do: by appProtocol, or by a route in its namespace", port.Port, h.Ref)}
			default:
				return false
			}
			return true
		})
		if all = out.settle(all); len(all) > 0 {
			out.consumers = append(out.consumers, consumer{namespace, all})
		}
	}
	slices.SortFunc(out.consumers, func(a, b consumer) int { return strings.Compare(a.namespace, b.namespace) })
	return out
}

// means reports whether a parent of a route means a port. One that names none means those that are not declared to be something else:
// an HTTPRoute for a whole service leaves the service's database port alone, and so does a TLSRoute, whose clients have to speak first.
func means(r *cluster.Route, p cluster.RouteParent, port cluster.ServicePort) bool {
	if !p.Picks(port) {
		return false
	}
	if p.Port != 0 || p.Section != "" {
		return true
	}
	switch protocolOf(port) {
	case http1, http2:
		return isHTTP(r.Kind)
	case opaque:
		return r.Kind == cluster.KindTCPRoute || r.Kind == cluster.KindTLSRoute && translate.AppProtocol(port) == workload.AppProtocol_TLS
	}
	return true
}

func isHTTP(k cluster.Kind) bool { return k == cluster.KindHTTPRoute || k == cluster.KindGRPCRoute }

// settle returns those routes, in order, that are of the kind that has precedence.
func (a *attachment) settle(routes []*cluster.Route) []*cluster.Route {
	slices.SortFunc(routes, cluster.CompareRoutes)
	for _, kind := range precedence {
		i := slices.IndexFunc(routes, func(r *cluster.Route) bool { return r.Kind == kind })
		if i < 0 {
			continue
		}
		winner := routes[i]
		return slices.DeleteFunc(routes, func(r *cluster.Route) bool {
			if r.Kind == kind {
				return false
			}
			a.lost[r] = loss{reasonConflicted, fmt.Sprintf("%s %s has the port: %ss come before %ss", winner.Kind, winner.Key, winner.Kind, r.Kind)}
			return true
		})
	}
	return nil
}

// sessions reports whether a route of the port keeps clients with endpoints.
func (a *attachment) sessions() bool {
	keeps := func(r *cluster.Route) bool {
		return slices.ContainsFunc(r.Rules, func(rule cluster.RouteRule) bool { return rule.Session != nil })
	}
	return slices.ContainsFunc(a.producers, keeps) ||
		slices.ContainsFunc(a.consumers, func(c consumer) bool { return slices.ContainsFunc(c.routes, keeps) })
}
