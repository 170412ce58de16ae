package xds

import (
	"cmp"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/istiod-lite/auth"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
)

// ClientStatus is one client, for people to look at.
type ClientStatus struct {
	ID       uint64                        `json:"id"`
	Node     string                        `json:"node"`
	Caller   auth.Caller                   `json:"caller"`
	Peer     string                        `json:"peer"`
	Since    time.Time                     `json:"since"`
	Types    map[string]SubscriptionStatus `json:"types"`
	InFlight []string                      `json:"inFlight,omitempty"`
	// OwedSince is when the oldest change was published that was not sent.
	OwedSince *time.Time `json:"owedSince,omitempty"`
	Pushes    []Push     `json:"pushes,omitempty"`
}

// SubscriptionStatus is what a client asked for of one type.
type SubscriptionStatus struct {
	Wildcard bool `json:"wildcard"`
	Names    int  `json:"names"`
	Owed     int  `json:"owed"`
}

// Clients describes the connected clients, the oldest connection first.
func (h *Hub) Clients() []ClientStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []ClientStatus{}
	for c := range h.conns {
		out = append(out, c.status())
	}
	slices.SortFunc(out, func(a, b ClientStatus) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// status describes a connection. The caller holds Hub.mu.
func (c *conn) status() ClientStatus {
	s := ClientStatus{ID: c.id, Node: c.node.GetId(), Caller: c.caller, Peer: c.peer, Since: c.since, Types: map[string]SubscriptionStatus{}}
	for t, sub := range c.subs {
		if sub != nil {
			s.Types[resource.Type(t).String()] = SubscriptionStatus{sub.wildcard, len(sub.names), len(sub.owed)}
		}
	}
	for nonce := range c.inFlight {
		s.InFlight = append(s.InFlight, nonce)
	}
	if !c.owedSince.IsZero() {
		since := c.owedSince
		s.OwedSince = &since
	}
	for _, p := range c.history {
		s.Pushes = append(s.Pushes, *p)
	}
	return s
}
