// Package settings holds the mesh's settings as the control plane tells them to data planes (ambit.v1.Settings), for
// whoever acts upon them. Nothing waits for settings: until they come, and under a control plane that has none, what holds is
// what Istio's data plane does. Readers take an immutable snapshot.
package settings

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// Settings are the settings of a mesh. They are immutable. The zero value is what holds when the control plane has told
// none.
type Settings struct {
	// TrustDomain is the first part of identities that the mesh gives out; "" if the control plane has not said.
	TrustDomain string
	// TrustDomainAliases are other trust domains whose identities count as the mesh's own. TrustDomain is not among them.
	TrustDomainAliases []string
	// RegistryOnly: connections to addresses that the mesh does not know are refused.
	RegistryOnly bool
}

// equal compares all fields.
func (s *Settings) equal(o *Settings) bool {
	return s.TrustDomain == o.TrustDomain && slices.Equal(s.TrustDomainAliases, o.TrustDomainAliases) && s.RegistryOnly == o.RegistryOnly
}

// Holder holds the settings in force. It is safe for concurrent use; the zero value is ready and holds the zero Settings.
type Holder struct {
	current atomic.Pointer[Settings]

	mu          sync.Mutex // guards the field below
	subscribers []*func(*Settings)
}

// none is what an empty Holder returns.
var none Settings

// Current returns the settings in force, never nil. It costs one atomic load.
func (h *Holder) Current() *Settings {
	if s := h.current.Load(); s != nil {
		return s
	}
	return &none
}

// Subscribe has f called with the new settings after each change, once Current returns them, by the goroutine that applies
// them; f must not block and must not subscribe or cancel. It is not called with those that are in force already. A call
// that runs when cancel is called may still end after it.
func (h *Holder) Subscribe(f func(*Settings)) (cancel func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subscribers = append(h.subscribers, &f)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.subscribers = slices.DeleteFunc(slices.Clone(h.subscribers), func(s *func(*Settings)) bool { return s == &f })
	}
}

// Handler subscribes to the settings. It is optional: no start waits for it.
func (h *Holder) Handler() xds.Handler {
	return xds.Handler{TypeURL: extension.Type, Apply: h.apply, Optional: true}
}

// apply takes a push. What cannot be used is rejected whole and leaves what was in force: half of a policy is none.
func (h *Holder) apply(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	var rejected []xds.Rejection
	if slices.Contains(removed, extension.Mesh) {
		h.set(&Settings{})
	}
	for _, r := range upserts {
		if r.GetName() != extension.Mesh {
			continue // of a later release
		}
		s, err := decode(r)
		if err != nil {
			rejected = append(rejected, xds.Rejection{Name: r.GetName(), Err: err})
			continue
		}
		h.set(s)
	}
	return rejected
}

func (h *Holder) set(s *Settings) {
	if h.Current().equal(s) {
		return
	}
	h.current.Store(s)
	h.mu.Lock()
	subscribers := h.subscribers
	h.mu.Unlock()
	for _, f := range subscribers {
		(*f)(s)
	}
}

func decode(r *discoveryv3.Resource) (*Settings, error) {
	var in extension.Settings
	if err := r.GetResource().UnmarshalTo(&in); err != nil {
		return nil, fmt.Errorf("decode settings: %w", err)
	}
	s := &Settings{TrustDomain: in.GetTrustDomain()}
	for _, td := range append([]string{s.TrustDomain}, in.GetTrustDomainAliases()...) {
		if td == "" {
			return nil, errors.New("decode settings: a trust domain is empty")
		}
		if td != s.TrustDomain && !slices.Contains(s.TrustDomainAliases, td) {
			s.TrustDomainAliases = append(s.TrustDomainAliases, td)
		}
	}
	switch p := in.GetOutboundPolicy(); p {
	case extension.Settings_ALLOW_ANY:
	case extension.Settings_REGISTRY_ONLY:
		s.RegistryOnly = true
	default:
		return nil, fmt.Errorf("decode settings: outbound policy %d is not known to this release", p)
	}
	return s, nil
}
