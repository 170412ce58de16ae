package rules

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/xtables"
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
	backends []*xtables.Backend // the host's first
}

// NewKernel finds the iptables programs of this machine, and which kind the host uses: the one with rules in
// hostNetNS, or in the caller's own network namespace if that is nil. It is an error if there is no usable one.
func NewKernel(ctx context.Context, hostNetNS ns.NetNS) (*Kernel, error) {
	backends, err := xtables.Find()
	if err != nil {
		return nil, err
	}
	size := map[*xtables.Backend]int{}
	count := func() error {
		for _, b := range backends {
			tables, err := b.Read(ctx, xtables.IPv4)
			if err != nil {
				return err
			}
			size[b] = tables.Size()
		}
		return nil
	}
	if hostNetNS == nil {
		err = count()
	} else {
		err = inside(hostNetNS, "find the host's kind of iptables", count)
	}
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(backends, func(a, b *xtables.Backend) int { return size[b] - size[a] })
	return &Kernel{backends: backends}, nil
}

// Host is the kind of iptables that the host uses.
func (k *Kernel) Host() *xtables.Backend { return k.backends[0] }

// Fill puts the policy route and the chains in place and hooks those of stage Carry, which changes nothing for any
// connection. What else is hooked already stays so all the while, also where its chains are rewritten. Connection
// tracking is on in the namespace once Fill returns.
func (k *Kernel) Fill(ctx context.Context, netns ns.NetNS, s Set) error {
	return k.eachSet(ctx, netns, "fill chains", s, func(f FamilySet, now perBackend) error {
		if err := now.foreign(); err != nil {
			return err
		}
		if err := addRoute(f); err != nil {
			return err
		}
		b := now.choose(k)
		for _, c := range f.Chains {
			if err := b.Write(ctx, f.Family, now[b], c.kernel()); err != nil {
				return err
			}
			if c.Stage == Carry {
				if err := b.Hook(ctx, f.Family, now[b], c.kernel(), false); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Hook lets connections into the chains of stages Guard and Capture, and then takes away what is there of ours beyond the
// set: in the other kind of iptables, or put by another release. Fill comes before it.
func (k *Kernel) Hook(ctx context.Context, netns ns.NetNS, s Set) error {
	return k.eachSet(ctx, netns, "hook chains", s, func(f FamilySet, now perBackend) error {
		chosen := now.choose(k)
		for _, stage := range []Stage{Guard, Capture} {
			for _, c := range f.Chains {
				if c.Stage != stage || len(c.Rules) == 0 {
					continue
				}
				if err := chosen.Hook(ctx, f.Family, now[chosen], c.kernel(), false); err != nil {
					return err
				}
			}
		}
		for b, t := range now {
			if err := b.Drop(ctx, f.Family, t, f.surplus(t, b == chosen)...); err != nil {
				return err
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
	return k.eachHolder(ctx, netns, "un-hook chains", func(b *xtables.Backend, f xtables.Family, t xtables.Tables) error {
		return b.Unhook(ctx, f, t, ours(t, Capture)...)
	})
}

// Remove takes away everything that Apply brought, in whichever kind of iptables, and nothing else. Connections that
// are redirected do not survive it.
func (k *Kernel) Remove(ctx context.Context, netns ns.NetNS) error {
	err := k.eachHolder(ctx, netns, "remove chains", func(b *xtables.Backend, f xtables.Family, t xtables.Tables) error {
		places := ours(t, Carry)
		if err := b.Drop(ctx, f, t, places...); err != nil {
			return err
		}
		b.Tidy(f, t, places...)
		return nil
	})
	if err != nil {
		return err
	}
	return inside(netns, "remove policy route", func() error {
		for _, f := range xtables.Families() {
			if err := removeRoute(f); err != nil {
				return err
			}
		}
		return nil
	})
}

// eachSet visits the families of the set that the namespace has, with what is there.
func (k *Kernel) eachSet(ctx context.Context, netns ns.NetNS, what string, s Set, visit func(FamilySet, perBackend) error) error {
	return inside(netns, what, func() error {
		has := xtables.Families()
		for _, f := range s.Families {
			if !slices.Contains(has, f.Family) {
				continue
			}
			now, err := k.read(ctx, f.Family)
			if err != nil {
				return err
			}
			if err := visit(f, now); err != nil {
				return err
			}
		}
		return nil
	})
}

// eachHolder visits every kind of iptables and family that holds something of ours.
func (k *Kernel) eachHolder(ctx context.Context, netns ns.NetNS, what string, visit func(*xtables.Backend, xtables.Family, xtables.Tables) error) error {
	return inside(netns, what, func() error {
		for _, f := range xtables.Families() {
			now, err := k.read(ctx, f)
			if err != nil {
				return err
			}
			for _, b := range k.backends {
				if len(ours(now[b], Carry)) == 0 {
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
	// Names: name queries are redirected, in some family.
	Names bool
	// Foreign: another program holds a chain of a name that we use; nothing of it is counted as ours.
	Foreign bool
	// Differences lists, in words, where the namespace differs from the set; empty if it is as it must be.
	Differences []string
}

// Inspect compares a network namespace with a set, changing nothing.
func (k *Kernel) Inspect(ctx context.Context, netns ns.NetNS, s Set) (State, error) {
	var st State
	err := inside(netns, "inspect", func() error {
		for _, f := range xtables.Families() {
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
				st.Leftover = st.Leftover || len(ours(now[b], Carry)) > 0
				st.Captured = st.Captured || captured(now[b])
				st.Names = st.Names || redirectsNames(now[b])
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

func (f FamilySet) differences(now perBackend, chosen *xtables.Backend) []string {
	var out []string
	for _, c := range f.Chains {
		name := string(f.Family) + ": " + c.Table + " " + c.Name
		if !c.kernel().Right(now[chosen]) {
			out = append(out, name+" differs")
		}
		if len(c.Rules) > 0 && !now[chosen].Hooked(c.Table, c.Hook, c.Name) {
			out = append(out, name+" not hooked")
		}
	}
	for b, t := range now {
		for _, p := range f.surplus(t, b == chosen) {
			out = append(out, fmt.Sprintf("%s: %s %s in iptables-%s is too much", f.Family, p.Table, p.Name, b.Kind))
		}
	}
	slices.Sort(out)
	return out
}

// surplus are the places of ours beyond the set; all of ours, unless the backend is the chosen one.
func (f FamilySet) surplus(t xtables.Tables, chosen bool) []xtables.Place {
	return slices.DeleteFunc(ours(t, Carry), func(p xtables.Place) bool {
		return chosen && slices.ContainsFunc(f.Chains, func(c Chain) bool { return slices.Contains(c.kernel().Places(), p) })
	})
}

// perBackend is what each kind of iptables holds in one family.
type perBackend map[*xtables.Backend]xtables.Tables

func (k *Kernel) read(ctx context.Context, f xtables.Family) (perBackend, error) {
	out := perBackend{}
	for _, b := range k.backends {
		t, err := b.Read(ctx, f)
		if err != nil {
			return nil, err
		}
		out[b] = t
	}
	return out, nil
}

// choose returns the kind in which rules are to be: where we capture, else where something of ours is, else where there
// is anything, else the host's.
func (p perBackend) choose(k *Kernel) *xtables.Backend {
	for _, good := range []func(xtables.Tables) bool{
		captured,
		func(t xtables.Tables) bool { return len(ours(t, Carry)) > 0 },
		func(t xtables.Tables) bool { return t.Size() > 0 },
	} {
		for _, b := range k.backends {
			if good(p[b]) {
				return b
			}
		}
	}
	return k.Host()
}

func (p perBackend) foreign() error {
	for b, t := range p {
		for _, c := range For(Config{DNS: true}).Families[0].Chains {
			for _, place := range c.kernel().Places() {
				if owner(t, place) == somebody {
					return fmt.Errorf("iptables-%s, table %s, chain %s: %w", b.Kind, place.Table, place.Name, ErrForeign)
				}
			}
		}
	}
	return nil
}

// ours are the places, down to the stage, that hold a chain of ours, whichever release put it; capture first.
func ours(t xtables.Tables, down Stage) []xtables.Place {
	var out []xtables.Place
	for _, table := range []string{"nat", "mangle", "raw", "filter"} {
		if table != "nat" && down == Capture {
			break
		}
		for _, name := range slices.Sorted(maps.Keys(t[table])) {
			if p := (xtables.Place{Table: table, Name: name}); claimed(name) && owner(t, p) == mesh {
				out = append(out, p)
			}
		}
	}
	return out
}

// claimed says whether a chain of that name may be ours.
func claimed(name string) bool {
	return strings.HasPrefix(name, ownPrefix) || strings.HasPrefix(name, chainPrerouting) || strings.HasPrefix(name, chainOutput)
}

// captured says whether a chain of ours redirects.
func captured(t xtables.Tables) bool {
	return slices.ContainsFunc(ours(t, Capture), func(p xtables.Place) bool {
		rules, _ := t.Chain(p.Table, p.Name)
		return t.Reached(p) && len(rules) > 0
	})
}

// redirectsNames says whether a chain of ours redirects name queries.
func redirectsNames(t xtables.Tables) bool {
	return slices.ContainsFunc(ours(t, Capture), func(p xtables.Place) bool {
		rules, _ := t.Chain(p.Table, p.Name)
		return t.Reached(p) && slices.ContainsFunc(rules, func(r string) bool {
			return strings.HasSuffix(r, "-j REDIRECT --to-ports "+strconv.Itoa(api.PortDNS))
		})
	})
}

// Owners of a chain.
const (
	nobody = iota // it is not there
	mesh
	somebody
)

// owner says whose the chain in a place is. It is the mesh's if it is empty, or has a rule that only this mesh writes,
// which the first rule of each of our chains is; with other content it is a sidecar's.
func owner(t xtables.Tables, p xtables.Place) int {
	rules, there := t.Chain(p.Table, p.Name)
	switch {
	case !there:
		return nobody
	case len(rules) == 0, strings.HasPrefix(p.Name, ownPrefix):
		return mesh
	}
	for _, r := range rules {
		for _, m := range marks() {
			if strings.Contains(" "+r+" ", m) {
				return mesh
			}
		}
	}
	return somebody
}

// marks are words in rules that this mesh writes and nobody else does: its marks with their masks, and the source of
// probes.
func marks() []string {
	var out []string
	for _, f := range For(Config{IPv6: true, DNS: true}).Families {
		for _, c := range f.Chains {
			for _, r := range c.Rules {
				for word := range strings.FieldsSeq(r.Spec) {
					if (strings.HasPrefix(word, "0x") && strings.Contains(word, "/")) || word == f.Probe.String() {
						out = append(out, " "+word+" ")
					}
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// inside runs f on a thread of its own in the network namespace; f starts no goroutines that rely on it.
func inside(netns ns.NetNS, what string, f func() error) error {
	if err := netns.Do(func(ns.NetNS) error { return f() }); err != nil {
		return fmt.Errorf("%s in %s: %w", what, netns.Path(), err)
	}
	return nil
}
