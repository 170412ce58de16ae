package xds

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/auth"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
)

// Waypoints holds a Hub for each waypoint. It is safe for concurrent use. Make one with NewWaypoints.
type Waypoints struct {
	metrics *Metrics

	mu       sync.RWMutex // guards the fields below; hubs have locks of their own, which are taken inside it
	views    map[string]view
	accounts map[string]int // how many views a service account may ask for
	draining bool
	// complete says that the first step of all views was published.
	complete bool
}

// view is what one waypoint is told.
type view struct {
	hub     *Hub
	account string
}

// NewWaypoints returns Waypoints that know none.
func NewWaypoints(m *Metrics) *Waypoints {
	return &Waypoints{metrics: m, views: map[string]view{}, accounts: map[string]int{}}
}

// Publish makes steps of views current. It does not wait for any client. The streams of a view that is gone end. The first call must
// bring all views, even if there is none.
func (w *Waypoints) Publish(views []resource.View) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.complete = true
	for _, step := range views {
		v, known := w.views[step.Gateway]
		switch {
		case step.Gone:
			if known {
				v.hub.close()
				w.account(v.account, -1)
				delete(w.views, step.Gateway)
			}
			continue
		case !known:
			v = view{NewHub(w.metrics), step.Account}
			v.hub.draining = w.draining
			w.account(step.Account, 1)
		case v.account != step.Account:
			w.account(v.account, -1)
			w.account(step.Account, 1)
			v.account = step.Account
		}
		w.views[step.Gateway] = v
		v.hub.Publish(resource.Change{Upserts: step.Upserts, Removed: step.Removed})
	}
}

func (w *Waypoints) account(name string, n int) {
	if w.accounts[name] += n; w.accounts[name] == 0 {
		delete(w.accounts, name)
	}
}

// admit returns nil for callers that have the service account of a waypoint; denied is what others are told.
func (w *Waypoints) admit(c auth.Caller, denied error) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	switch {
	case !w.complete:
		return errIncomplete
	case c.Account() == "" || w.accounts[c.Account()] == 0:
		return status.Error(codes.PermissionDenied, denied.Error())
	}
	return nil
}

// errIncomplete tells a client that it should try again: which waypoints there are is not known yet.
var errIncomplete = status.Error(codes.Unavailable, "this replica has not read the cluster yet; try again")

// waypointType begins the node ID of a waypoint.
const waypointType = "waypoint~"

// isWaypoint reports whether a client says that it is a waypoint.
func isWaypoint(node *corev3.Node) bool {
	return strings.HasPrefix(node.GetId(), waypointType) || gatewayOf(node) != ""
}

// gatewayOf is the name of the Gateway that a client says it was deployed for.
func gatewayOf(node *corev3.Node) string {
	return node.GetMetadata().GetFields()["LABELS"].GetStructValue().GetFields()[api.LabelGatewayName].GetStringValue()
}

// find returns the Hub of the waypoint that a client says it is, or a gRPC status. What the client says must agree with its
// credential already.
func (w *Waypoints) find(c auth.Caller, node *corev3.Node, unguarded bool) (*Hub, error) {
	name := gatewayOf(node)
	if name == "" {
		return nil, status.Errorf(codes.InvalidArgument, "node %q says not which Gateway it was deployed for: set metadata LABELS, %s", node.GetId(), api.LabelGatewayName)
	}
	namespace := c.Namespace
	if unguarded {
		namespace = node.GetMetadata().GetFields()["NAMESPACE"].GetStringValue()
	}
	w.mu.RLock()
	defer w.mu.RUnlock()
	v, ok := w.views[namespace+"/"+name]
	switch {
	case !w.complete:
		return nil, errIncomplete
	case !ok:
		return nil, status.Errorf(codes.PermissionDenied, "there is no waypoint %s/%s: no such Gateway, or it is not of a class of waypoints", namespace, name)
	case !unguarded && v.account != c.Account():
		return nil, status.Errorf(codes.PermissionDenied, "waypoint %s/%s is told to service account %s only, and not to %s", namespace, name, v.account, c.Account())
	}
	return v.hub, nil
}

// Names lists the waypoints, "namespace/name", sorted.
func (w *Waypoints) Names() []string {
	w.mu.RLock()
	defer w.mu.RUnlock()
	out := make([]string, 0, len(w.views))
	for name := range w.views {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Hub returns the Hub of a waypoint, "namespace/name", nil if there is none.
func (w *Waypoints) Hub(name string) *Hub {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.views[name].hub
}

// Clients describes the connected waypoints, the oldest connection first.
func (w *Waypoints) Clients() []ClientStatus {
	out := []ClientStatus{}
	for _, name := range w.Names() {
		if h := w.Hub(name); h != nil {
			out = append(out, h.Clients()...)
		}
	}
	slices.SortFunc(out, func(a, b ClientStatus) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Drain ends the streams of all waypoints, spread over the given time, and refuses new ones.
func (w *Waypoints) Drain(over time.Duration) {
	w.mu.Lock()
	w.draining = true
	hubs := make([]*Hub, 0, len(w.views))
	for _, v := range w.views {
		hubs = append(hubs, v.hub)
	}
	w.mu.Unlock()
	var told sync.WaitGroup
	for _, h := range hubs {
		told.Go(func() { h.Drain(over) })
	}
	told.Wait()
}
