package policy

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Scope says which workloads a policy selects.
type Scope uint8

const (
	// ScopeGlobal: all of the mesh.
	ScopeGlobal Scope = iota
	// ScopeNamespace: those of the policy's namespace.
	ScopeNamespace
	// ScopeWorkload: those that name the policy.
	ScopeWorkload
)

// Action is what a policy does with the connections that it matches.
type Action uint8

const (
	Allow Action = iota
	Deny
)

// Policy is one compiled policy. It is immutable and safe for concurrent use.
type Policy struct {
	Name      string
	Namespace string
	Scope     Scope
	Action    Action
	DryRun    bool
	// Invalid is why the policy could not be compiled, nil if it could. An invalid Deny policy denies all that it
	// selects, an invalid Allow policy allows nothing; DryRun stays as it was.
	Invalid error
}

// Key is "namespace/name", by which workloads name a policy; the name alone if there is no namespace.
func (p *Policy) Key() string { panic("unwritten") }

// Compile makes a Policy. If the error is not nil, it says what was not understood, and the Policy is the one that fails
// closed, to be used in place of what was meant; it is nil only if even that cannot be said, since the policy has no name
// or a namespaced scope without a namespace.
func Compile(a *security.Authorization) (*Policy, error) { panic("unwritten") }

// Connection is what a decision is made on.
type Connection struct {
	// Peer is the verified identity of the client; zero if it has none (plaintext).
	Peer identity.Identity
	// Source is the client's address.
	Source netip.Addr
	// Destination is the address and port of the application, behind service ports.
	Destination netip.AddrPort
}

// Matches reports whether any rule of the policy matches c. It says nothing of Invalid.
func (p *Policy) Matches(c Connection) bool { panic("unwritten") }

// Group is an immutable set of policies that apply together, e.g. all of one namespace. The nil Group is empty.
type Group struct{}

// NewGroup makes a Group; it keeps the pointers, not the slice.
func NewGroup(policies []*Policy) *Group { panic("unwritten") }

// Set is the policies that apply to one workload. It is immutable; the zero Set is empty and allows all.
type Set struct {
	Global    *Group
	Namespace *Group
	// Selected are those that the workload names, Missing the names for which there is none (yet).
	Selected []*Policy
	Missing  []string
}

// Verdict is the outcome of a decision.
type Verdict uint8

const (
	// Undecided: no policy that is known denies, but one that the workload names is not known. A new connection must wait
	// or be refused; one that lives may go on.
	Undecided Verdict = iota
	Allowed
	Denied
)

// Decision is the answer for one connection.
type Decision struct {
	Verdict Verdict
	// Policy is the key of the policy that decided: the Deny policy, the Allow policy, or the missing one. Empty when
	// Allow policies exist and none matched, and when no policy exists.
	Policy string
	// Reason is a sentence for logs; empty if Verdict is Allowed.
	Reason string
	// DryRun lists dry-run policies that matched.
	DryRun []*Policy
}

// Allowed reports whether Verdict is Allowed.
func (d Decision) Allowed() bool { return d.Verdict == Allowed }

// Evaluate decides: a Deny policy that matches denies; otherwise, if there are Allow policies, one of them must match.
func (s Set) Evaluate(c Connection) Decision { panic("unwritten") }
