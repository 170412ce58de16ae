package rules

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
)

// ErrForeign is returned for a network namespace where another program holds a chain of a name that we use, with
// content that is not ours: a sidecar's. Such a namespace is left alone.
var ErrForeign = errors.New("chain belongs to another program")

// Kernel brings network namespaces to a Set and away from it. All methods are idempotent, and may be called again after
// any of them was cut off. Calls for different namespaces may run at once; the caller orders those for the same one. A
// call that is cancelled ends after the iptables command that it is in.
//
// Both kinds of iptables (nft and legacy) may be installed. Rules are put with the kind that already holds ours, else
// with the one that holds anybody's, else with the host's; they are found and removed in both.
type Kernel struct {
	backends []*backend
	host     *backend // what a namespace without any rule gets
}

// NewKernel finds the iptables programs of this machine, and which kind the host uses: the one with rules in
// hostNetNS, or in the caller's own network namespace if that is nil. It is an error if there is no usable one.
func NewKernel(ctx context.Context, hostNetNS ns.NetNS) (*Kernel, error) {
	k := &Kernel{}
	var missing []error
	for _, kind := range []string{"nft", "legacy"} {
		b, err := newBackend(kind)
		if err != nil {
			missing = append(missing, err)
			continue
		}
		k.backends = append(k.backends, b)
	}
	if len(k.backends) == 0 {
		return nil, fmt.Errorf("find iptables: %w", errors.Join(missing...))
	}
	k.host = k.backends[0]
	find := func(ns.NetNS) error {
		best := 0
		for _, b := range k.backends {
			tables, err := b.read(ctx, IPv4)
			if err != nil {
				return err
			}
			if n := tables.size(); n > best {
				best, k.host = n, b
			}
		}
		return nil
	}
	var err error
	if hostNetNS == nil {
		err = find(nil)
	} else {
		err = hostNetNS.Do(find)
	}
	if err != nil {
		return nil, fmt.Errorf("find the host's kind of iptables: %w", err)
	}
	return k, nil
}

// HostBackend names the kind of iptables that the host uses: "nft" or "legacy".
func (k *Kernel) HostBackend() string { return k.host.kind }

// Fill puts the policy route and the chains in place and hooks those of stage Carry, which changes nothing for any
// connection. What else is hooked already stays so all the while, also where its chains are rewritten. Connection
// tracking is on in the namespace once Fill returns.
func (k *Kernel) Fill(ctx context.Context, netns ns.NetNS, s Set) error {
	return inside(netns, "fill chains", func() error {
		for _, f := range s.Families {
			if f.Family == IPv6 && !hasIPv6() {
				continue
			}
			if err := addRoute(f); err != nil {
				return err
			}
			now, err := k.read(ctx, f.Family)
			if err != nil {
				return err
			}
			if err := now.foreign(); err != nil {
				return err
			}
			if err := k.fill(ctx, now.choose(k), now, f); err != nil {
				return err
			}
		}
		return nil
	})
}

// Hook lets connections into the chains of stages Guard and Capture, and then takes away what the other kind of iptables may hold of
// ours. Fill comes before it.
func (k *Kernel) Hook(ctx context.Context, netns ns.NetNS, s Set) error {
	return inside(netns, "hook chains", func() error {
		for _, f := range s.Families {
			if f.Family == IPv6 && !hasIPv6() {
				continue
			}
			now, err := k.read(ctx, f.Family)
			if err != nil {
				return err
			}
			chosen := now.choose(k)
			ipt := chosen.program(f.Family)
			for _, stage := range []Stage{Guard, Capture} {
				for _, c := range f.Chains {
					if c.Stage != stage || len(c.Rules) == 0 || now[chosen].hooked(c.Table, c.Hook, c.Name) {
						continue
					}
					if err := step(ctx, ipt.Insert(c.Table, c.Hook, 1, "-j", c.Name)); err != nil {
						return err
					}
				}
			}
			for b, tables := range now {
				if b == chosen {
					continue
				}
				if err := b.strip(ctx, f.Family, tables); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Apply is Fill and Hook.
func (k *Kernel) Apply(ctx context.Context, netns ns.NetNS, s Set) error {
	if err := k.Fill(ctx, netns, s); err != nil {
		return err
	}
	return k.Hook(ctx, netns, s)
}

// Unhook stops the capture of new connections, in whichever kind of iptables it was set up. What carries those that
// exist stays.
func (k *Kernel) Unhook(ctx context.Context, netns ns.NetNS) error {
	return k.eachFamily(ctx, netns, "un-hook chains", func(b *backend, f Family, t tables) error {
		return b.unhook(ctx, f, t, Capture)
	})
}

// Remove takes away everything that Apply brought, in whichever kind of iptables, and nothing else. Connections that
// are redirected do not survive it.
func (k *Kernel) Remove(ctx context.Context, netns ns.NetNS) error {
	err := k.eachFamily(ctx, netns, "remove chains", func(b *backend, f Family, t tables) error {
		return b.strip(ctx, f, t)
	})
	if err != nil {
		return err
	}
	return inside(netns, "remove policy route", func() error {
		return errors.Join(removeRoute(IPv4), removeRoute(IPv6))
	})
}

// eachFamily visits every kind of iptables and family that holds something of ours.
func (k *Kernel) eachFamily(ctx context.Context, netns ns.NetNS, what string, visit func(*backend, Family, tables) error) error {
	return inside(netns, what, func() error {
		for _, f := range families() {
			now, err := k.read(ctx, f)
			if err != nil {
				return err
			}
			for _, b := range k.backends {
				if !now[b].ours() {
					continue
				}
				if err := visit(b, f, now[b]); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// State is what a network namespace holds of ours.
type State struct {
	// Captured: new connections are redirected, in some family and direction.
	Captured bool
	// Leftover: something of ours is there, captured or not.
	Leftover bool
	// Foreign: another program holds a chain of a name that we use; nothing of it is counted as ours.
	Foreign bool
	// Differences lists, in words, where the namespace differs from the set; empty if it is as it must be.
	Differences []string
}

// Inspect compares a network namespace with a set, changing nothing.
func (k *Kernel) Inspect(ctx context.Context, netns ns.NetNS, s Set) (State, error) {
	var st State
	err := inside(netns, "inspect", func() error {
		for _, f := range families() {
			now, err := k.read(ctx, f)
			if err != nil {
				return err
			}
			route, rule, err := haveRoute(f)
			if err != nil {
				return err
			}
			st.Leftover = st.Leftover || route || rule
			st.Foreign = st.Foreign || now.foreign() != nil
			for _, b := range k.backends {
				st.Leftover = st.Leftover || now[b].ours()
				st.Captured = st.Captured || now[b].captured()
			}
			i := slices.IndexFunc(s.Families, func(fs FamilySet) bool { return fs.Family == f })
			if i < 0 {
				continue
			}
			if !rule || (!route && loopbackHas(f)) {
				st.Differences = append(st.Differences, string(f)+": policy route missing")
			}
			st.Differences = append(st.Differences, s.Families[i].differences(now, now.choose(k))...)
		}
		return nil
	})
	return st, err
}

func (f FamilySet) differences(now perBackend, chosen *backend) []string {
	var out []string
	for _, c := range f.Chains {
		name := string(f.Family) + ": " + c.Table + " " + c.Name
		have, there := now[chosen].chain(c.Table, c.Name)
		hooked := now[chosen].hooked(c.Table, c.Hook, c.Name)
		switch {
		case len(c.Rules) == 0 && there:
			out = append(out, name+" is too much")
		case len(c.Rules) == 0:
		case !there:
			out = append(out, name+" missing")
		case !slices.Equal(have, c.specs()):
			out = append(out, name+" differs")
		case !hooked:
			out = append(out, name+" not hooked")
		}
		if there := now[chosen].hasChain(c.Table, c.Name+spare); there {
			out = append(out, name+" half rewritten")
		}
	}
	for b, t := range now {
		if b != chosen && t.ours() {
			out = append(out, string(f.Family)+": chains in iptables-"+b.kind+" too")
		}
	}
	slices.Sort(out)
	return out
}

func (c Chain) specs() []string {
	out := make([]string, len(c.Rules))
	for i, r := range c.Rules {
		out[i] = strings.Join(r.Spec, " ")
	}
	return out
}

// inside runs f on a thread of its own in the network namespace; f starts no goroutines that rely on it.
func inside(netns ns.NetNS, what string, f func() error) error {
	if err := netns.Do(func(ns.NetNS) error { return f() }); err != nil {
		return fmt.Errorf("%s in %s: %w", what, netns.Path(), err)
	}
	return nil
}

// step ends a sequence of commands at the first error, or when the context ended.
func step(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	return ctx.Err()
}
