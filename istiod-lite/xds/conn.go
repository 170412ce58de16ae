package xds

import (
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/istiod-lite/auth"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
)

// wildcard subscribes to all resources of a type.
const wildcard = "*"

// subscription is what a stream asked for of one type. All of it is guarded by Hub.mu.
type subscription struct {
	wildcard bool
	// names that were asked for one by one.
	names map[string]struct{}
	// fresh subscriptions have had no response yet.
	fresh bool
	// known are the versions that the client brought with it, until the first response.
	known map[string]string
	// owed are changes that were not sent yet, the last state of each resource; nil for what is gone.
	owed map[string]*resource.Resource
}

func (s *subscription) asked(name string) bool {
	_, ok := s.names[name]
	return ok
}

// conn is one stream of one client. Fields are guarded by Hub.mu unless they say otherwise.
type conn struct {
	hub *Hub
	// Set before join, and not changed.
	caller auth.Caller
	node   *corev3.Node
	peer   string
	since  time.Time

	id   uint64
	subs [resource.Types]*subscription
	// inFlight are the responses that were sent and not answered, by nonce.
	inFlight  map[string]*Push
	lastNonce uint64
	// owedSince is when the oldest change was published that was not sent; zero if none is owed.
	owedSince time.Time
	// patient is over when a client that wants addresses has had its time to ask for authorisations first.
	patient bool
	history []*Push

	// woken has room for one; full means that next may have something. Safe for concurrent use.
	woken chan struct{}
	// ended is closed by end.
	ended chan struct{}
}

// maxHistory is how many pushes are remembered for people to look at.
const maxHistory = 32

// maxNamed is how many names of a push are remembered.
const maxNamed = 10

// Push is what is remembered of a response.
type Push struct {
	Type    string    `json:"type"`
	Nonce   string    `json:"nonce"`
	Version string    `json:"version"`
	Sent    time.Time `json:"sent"`
	// Acked is when the client answered, nil while it has not.
	Acked    *time.Time `json:"acked,omitempty"`
	Rejected string     `json:"rejected,omitempty"`
	Upserts  int        `json:"upserts"`
	Removed  int        `json:"removed"`
	Bytes    int        `json:"bytes"`
	// Names are some of the resources.
	Names []string `json:"names,omitempty"`

	published time.Time // when the oldest change in it was
}

func newConn(h *Hub, caller auth.Caller, node *corev3.Node, peer string) *conn {
	return &conn{
		hub: h, caller: caller, node: node, peer: peer, since: time.Now(), patient: true,
		inFlight: map[string]*Push{}, woken: make(chan struct{}, 1), ended: make(chan struct{}),
	}
}

// wake makes the sender look whether something is owed.
func (c *conn) wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// end makes the stream end. It may be called once.
func (c *conn) end() { close(c.ended) }

// owe takes note that a resource changed, and reports whether the connection is to be told. The caller holds Hub.mu.
func (c *conn) owe(t resource.Type, name string, r *resource.Resource) bool {
	sub := c.subs[t]
	if sub == nil || sub.fresh || !sub.wildcard && !sub.asked(name) {
		return false
	}
	if sub.owed == nil {
		sub.owed = map[string]*resource.Resource{}
	}
	sub.owed[name] = r
	return true
}

// mayHave reports whether a type may be sent yet. A proxy that comes back goes on serving, so an address must not reach it
// before the authorisations that it names: a client that asks for addresses first is given time to ask for those. The
// caller holds Hub.mu.
func (c *conn) mayHave(t resource.Type) bool {
	if t != resource.Address || !c.subs[t].fresh || !c.patient {
		return true
	}
	return c.subs[resource.Authorization] != nil
}

// note records a response as in flight. The caller holds Hub.mu.
func (c *conn) note(r *response) {
	p := &Push{
		Type: r.typ.String(), Nonce: r.nonce, Version: r.version, Sent: time.Now(),
		Upserts: len(r.resources), Removed: len(r.removed), Bytes: r.size(), published: c.owedSince,
	}
	for _, res := range r.resources[:min(len(r.resources), maxNamed)] {
		p.Names = append(p.Names, res.Name)
	}
	for _, name := range r.removed[:min(len(r.removed), maxNamed)] {
		p.Names = append(p.Names, "-"+name)
	}
	c.owedSince = time.Time{}
	c.inFlight[r.nonce] = p
	c.history = append(c.history, p)
	if len(c.history) > maxHistory {
		c.history = append(c.history[:0], c.history[len(c.history)-maxHistory:]...)
	}
	c.hub.metrics.pushes.WithLabelValues(p.Type).Inc()
	c.hub.metrics.bytes.WithLabelValues(p.Type).Add(float64(p.Bytes))
}

// request takes what a client said: an answer to a response, a change of what it subscribes to, or both.
func (c *conn) request(req *discoveryv3.DeltaDiscoveryRequest) (rejected *Push, err error) {
	t, ok := resource.TypeOf(req.GetTypeUrl())
	if !ok {
		return nil, nil // a type that this release has none of: a client of another release may ask, and waits
	}
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if nonce := req.GetResponseNonce(); nonce != "" {
		rejected = c.answer(nonce, req)
	}
	sub := c.subs[t]
	if sub == nil {
		sub = &subscription{fresh: true, names: map[string]struct{}{}, known: req.GetInitialResourceVersions()}
		sub.wildcard = len(req.GetResourceNamesSubscribe()) == 0
		c.subs[t] = sub
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == wildcard {
			if !sub.wildcard && !sub.fresh { // from single names to everything: start over
				sub.fresh = true
			}
			sub.wildcard = true
			continue
		}
		if len(name) > maxName {
			return rejected, fmt.Errorf("a resource name of %d bytes: at most %d", len(name), maxName)
		}
		sub.names[name] = struct{}{}
		if !sub.fresh {
			c.owe(t, name, h.resources[t][name])
		}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if name == wildcard {
			sub.wildcard = false
			continue
		}
		delete(sub.names, name)
	}
	if len(sub.names) > maxNames {
		return rejected, fmt.Errorf("more than %d names in one subscription: subscribe to %q", maxNames, wildcard)
	}
	c.wake()
	return rejected, nil
}

// Bounds on what one client can make the server remember.
const (
	maxName  = 1024
	maxNames = 100_000
)

// answer takes an ACK or NACK. A nonce that is not in flight is of an earlier stream or twice answered, and says nothing. The
// caller holds Hub.mu.
func (c *conn) answer(nonce string, req *discoveryv3.DeltaDiscoveryRequest) (rejected *Push) {
	p := c.inFlight[nonce]
	if p == nil {
		c.hub.metrics.staleNonces.Inc()
		return nil
	}
	delete(c.inFlight, nonce)
	now := time.Now()
	p.Acked = &now
	if !p.published.IsZero() {
		c.hub.metrics.convergence.Observe(now.Sub(p.published).Seconds())
	}
	if detail := req.GetErrorDetail(); detail != nil {
		p.Rejected = strings.ToValidUTF8(truncate(detail.GetMessage(), 1024), "?")
		c.hub.metrics.rejects.WithLabelValues(p.Type).Inc()
		return p
	}
	return nil
}

func truncate(s string, n int) string { return s[:min(len(s), n)] }
