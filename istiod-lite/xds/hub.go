package xds

import (
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/istiod-lite/resource"
)

// Hub holds the current resources and the connections that are told of them. It is safe for concurrent use. Make one with
// NewHub.
type Hub struct {
	metrics *Metrics

	mu sync.Mutex // guards the fields below and what is said to be guarded in conn; never held across a send
	// resources by type and name.
	resources [resource.Types]map[string]*resource.Resource
	conns     map[*conn]struct{}
	// generation counts changes.
	generation uint64
	draining   bool
}

// NewHub returns a Hub without resources. Until the first Publish, connections wait for their first response.
func NewHub(m *Metrics) *Hub {
	h := &Hub{metrics: m, conns: map[*conn]struct{}{}}
	for t := range h.resources {
		h.resources[t] = map[string]*resource.Resource{}
	}
	return h
}

// Publish makes a change current and owes it to every connection that asked for what it changes. It does not wait for any of
// them. The first call must bring the whole state, even if that is empty.
func (h *Hub) Publish(change resource.Change) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.generation++
	before := h.sizes()
	for _, r := range change.Upserts {
		h.resources[r.Type][r.Name] = r
	}
	for _, n := range change.Removed {
		delete(h.resources[n.Type], n.Name)
	}
	for c := range h.conns {
		owed := false
		for _, r := range change.Upserts {
			owed = c.owe(r.Type, r.Name, r) || owed
		}
		for _, n := range change.Removed {
			owed = c.owe(n.Type, n.Name, nil) || owed
		}
		if owed && c.owedSince.IsZero() {
			c.owedSince = now
		}
		if owed || h.generation == 1 {
			c.wake()
		}
	}
	h.measure(before)
}

// sizes counts the resources by type. The caller holds mu.
func (h *Hub) sizes() (n [resource.Types]int) {
	for t := range h.resources {
		n[t] = len(h.resources[t])
	}
	return n
}

// measure adds what there is more than before to what all hubs have. The caller holds mu.
func (h *Hub) measure(before [resource.Types]int) {
	for t, n := range h.sizes() {
		h.metrics.resources.WithLabelValues(resource.Type(t).String()).Add(float64(n - before[t]))
	}
}

// close ends all streams at once, refuses new ones, and forgets the resources: nobody is served any more.
func (h *Hub) close() {
	h.Drain(0)
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.sizes()
	for t := range h.resources {
		clear(h.resources[t])
	}
	h.measure(before)
}

// Generation counts the changes that were published.
func (h *Hub) Generation() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.generation
}

// Resources lists the current resources of a type, by name.
func (h *Hub) Resources(t resource.Type) []*resource.Resource {
	h.mu.Lock()
	out := make([]*resource.Resource, 0, len(h.resources[t]))
	for _, r := range h.resources[t] {
		out = append(out, r)
	}
	h.mu.Unlock()
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Drain ends all streams, spread over the given time so that their clients do not come to another replica in one
// moment, and refuses new ones. It returns when the last has been told.
func (h *Hub) Drain(over time.Duration) {
	h.mu.Lock()
	if h.draining {
		h.mu.Unlock()
		return
	}
	h.draining = true
	conns := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		conns = append(conns, c)
	}
	h.mu.Unlock()
	if len(conns) == 0 {
		return
	}
	pause := time.NewTicker(max(over/time.Duration(len(conns)), time.Microsecond))
	defer pause.Stop()
	for i, c := range conns {
		if i > 0 {
			<-pause.C
		}
		c.end()
	}
}

// join adds a connection; false while the hub is draining.
func (h *Hub) join(c *conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return false
	}
	c.id = h.metrics.nextConn.Add(1)
	h.conns[c] = struct{}{}
	h.metrics.connections.Inc()
	return true
}

func (h *Hub) leave(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, c)
	h.metrics.connections.Dec()
}

// maxPush bounds the resources of one response in bytes, but for a type's first on a stream: a client takes the first
// response for the whole state, and goes into service on it.
const maxPush = 2 << 20

// next takes what is owed to a connection as responses in the order in which they must be sent: new resources before what
// names them, and what is gone after what named it. It returns nothing while a push is in flight, or if nothing is owed.
func (h *Hub) next(c *conn) []*response {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.generation == 0 || len(c.inFlight) > 0 {
		return nil
	}
	var out []*response
	var gone [resource.Types][]string
	for t := range resource.Type(resource.Types) {
		sub := c.subs[t]
		if sub == nil || !c.mayHave(t) {
			continue
		}
		if sub.fresh {
			r := &response{typ: t}
			r.resources, gone[t] = h.firstOf(sub, t)
			sub.fresh, sub.known, sub.owed = false, nil, nil
			out = append(out, r)
			continue
		}
		r := &response{typ: t}
		size := 0
		for name, res := range sub.owed {
			if res == nil {
				gone[t] = append(gone[t], name)
				continue
			}
			if size+len(res.Framed) > maxPush && size > 0 {
				out = append(out, r)
				r, size = &response{typ: t}, 0
			}
			r.resources = append(r.resources, res)
			size += len(res.Framed)
		}
		// Policies are followed by addresses even if there are none: a node proxy that keeps a policy in force until it knows
		// the workloads that name it learns that it does.
		if len(r.resources) > 0 || t == resource.Address && len(out) > 0 && out[0].typ == resource.Authorization {
			out = append(out, r)
		}
		sub.owed = nil
	}
	for t := resource.Type(resource.Types); t > 0; {
		t--
		if len(gone[t]) == 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1].typ == t {
			out[n-1].removed = gone[t]
		} else {
			out = append(out, &response{typ: t, removed: gone[t]})
		}
	}
	version := strconv.FormatUint(h.generation, 10)
	for _, r := range out {
		c.lastNonce++
		r.nonce, r.version = strconv.FormatUint(c.lastNonce, 10), version
		c.note(r)
	}
	return out
}

// firstOf lists what a new subscription is told: all that it asked for but what it has in the same version, and the names of
// what it has and that is no more.
func (h *Hub) firstOf(sub *subscription, t resource.Type) (upserts []*resource.Resource, removed []string) {
	all := h.resources[t]
	if sub.wildcard {
		upserts = make([]*resource.Resource, 0, max(0, len(all)-len(sub.known)))
		for name, r := range all {
			if v, ok := sub.known[name]; !ok || v != r.Version {
				upserts = append(upserts, r)
			}
		}
	} else {
		for name := range sub.names {
			if r := all[name]; r == nil {
				removed = append(removed, name)
			} else if v, ok := sub.known[name]; !ok || v != r.Version {
				upserts = append(upserts, r)
			}
		}
	}
	for name := range sub.known {
		if all[name] == nil && (sub.wildcard || !sub.asked(name)) {
			removed = append(removed, name)
		}
	}
	return upserts, removed
}
