package identity

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// ErrForgotten is wrapped by Manager.SVID when the identity was forgotten while the call waited.
var ErrForgotten = errors.New("identity was forgotten")

// ErrStopped is wrapped by Manager.SVID when the manager's Run has ended.
var ErrStopped = errors.New("certificate manager has stopped")

// ManagerConfig configures a Manager.
type ManagerConfig struct {
	// Issuer signs. Required.
	Issuer Issuer
	// Concurrency bounds the requests in flight. Zero means 8.
	Concurrency int
	// RequestTimeout bounds one request. Zero means 10 s.
	RequestTimeout time.Duration
	// Logger takes failures and renewals. Required.
	Logger *slog.Logger
	// OnChange, if set, is called by Run's goroutine for each SVID that was issued or renewed; it must not block.
	OnChange func(*SVID)
}

// Manager keeps a valid SVID for each identity that it was asked for. Its methods are safe for concurrent use.
type Manager struct{}

// NewManager makes a Manager, which issues nothing until Run is called.
func NewManager(cfg ManagerConfig) *Manager { panic("unwritten") }

// Run issues and renews until ctx ends, and returns once its last request has returned. Call it once.
func (m *Manager) Run(ctx context.Context) error { panic("unwritten") }

// SVID returns the valid SVID of id. If there is none yet, it asks for one, before all that Prefetch has asked for,
// and blocks until it is issued or ctx ends; failed requests are repeated meanwhile, and the error at the end names the
// last cause. Concurrent calls share one request.
func (m *Manager) SVID(ctx context.Context, id Identity) (*SVID, error) { panic("unwritten") }

// Prefetch asks for an SVID of id without waiting, and keeps it renewed until Forget.
func (m *Manager) Prefetch(id Identity) { panic("unwritten") }

// Forget drops the SVID and key of id, and its renewal; calls that wait for it fail. Connections that use it go on.
func (m *Manager) Forget(id Identity) { panic("unwritten") }

// State is where an identity's certificate stands.
type State string

const (
	// StateInitializing: no certificate was issued yet.
	StateInitializing State = "Initializing"
	// StateAvailable: a valid certificate is there.
	StateAvailable State = "Available"
	// StateUnavailable: there is no valid certificate and the last request failed.
	StateUnavailable State = "Unavailable"
)

// Status describes one identity.
type Status struct {
	Identity Identity
	State    State
	// SVID is the newest that was issued, perhaps expired; nil if none was.
	SVID *SVID
	// Err is why the last request failed; nil if it did not.
	Err error
	// Failures counts requests that failed in a row.
	Failures int
	// Next is when the next request is due.
	Next time.Time
}

// Snapshot lists all identities, sorted.
func (m *Manager) Snapshot() []Status { panic("unwritten") }
