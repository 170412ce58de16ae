package rules

import (
	"context"
	"errors"
	"log/slog"

	"github.com/containernetworking/plugins/pkg/ns"
)

// ErrForeign is returned for a network namespace where another program holds a chain of a name that we use, with
// content that is not ours: a sidecar's. Such a namespace is left alone.
var ErrForeign = errors.New("chain belongs to another program")

// KernelConfig configures a Kernel.
type KernelConfig struct {
	// HostNetNS is where the kind of iptables is looked up that a pod gets which has no rules yet; the caller's own
	// network namespace if nil.
	HostNetNS ns.NetNS
	// LockFile replaces iptables' lock file for changes in pods; see Kernel. Empty: iptables' own choice.
	Logger *slog.Logger
}

// Kernel brings network namespaces to a Set and away from it. All methods are idempotent and may be called again after
// any of them was cut off. Calls for different namespaces may run at once; the caller orders those for the same one.
// None of them outlives its context by more than one iptables command.
type Kernel struct{}

// NewKernel finds the iptables programs of this machine. It is an error if there is no usable one.
func NewKernel(ctx context.Context, c KernelConfig) (*Kernel, error) {
	return nil, errors.New("rules: no iptables")
}

// Fill puts the chains and the policy route in place, hooks those that carry redirected connections, and leaves capture
// un-hooked (as far as it is not hooked already). Connection tracking is on in the namespace once it returns.
func (k *Kernel) Fill(ctx context.Context, netns ns.NetNS, s Set) error { return nil }

// Hook lets new connections into the capturing chains. Fill comes before it.
func (k *Kernel) Hook(ctx context.Context, netns ns.NetNS, s Set) error { return nil }

// Apply is Fill and Hook.
func (k *Kernel) Apply(ctx context.Context, netns ns.NetNS, s Set) error {
	if err := k.Fill(ctx, netns, s); err != nil {
		return err
	}
	return k.Hook(ctx, netns, s)
}

// Unhook stops the capture of new connections, in whichever kind of iptables it was set up. What carries those that
// exist stays.
func (k *Kernel) Unhook(ctx context.Context, netns ns.NetNS) error { return nil }

// Remove takes away everything that Apply brought, in whichever kind of iptables, and nothing else.
func (k *Kernel) Remove(ctx context.Context, netns ns.NetNS) error { return nil }

// State is what a network namespace holds of ours.
type State struct {
	// Captured: new connections are redirected.
	Captured bool
	// Leftover: something of ours is there, captured or not.
	Leftover bool
	// Missing lists, in words, where the namespace differs from the set; empty if it is as it must be.
	Missing []string
}

// Inspect compares a network namespace with a set, changing nothing.
func (k *Kernel) Inspect(ctx context.Context, netns ns.NetNS, s Set) (State, error) {
	return State{}, nil
}
