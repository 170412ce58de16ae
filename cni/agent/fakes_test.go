package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/cni/discover"
	"github.com/ambit-mesh/ambit/cni/resolver"
	"github.com/ambit-mesh/ambit/cni/rules"
)

// netns is a sandbox, opened.
type netns struct {
	*os.File
	s *sandbox
}

func (n *netns) Do(f func(ns.NetNS) error) error { return f(n) }
func (n *netns) Set() error                      { return nil }
func (n *netns) Path() string                    { return n.Name() }
func (n *netns) Close() error                    { return n.File.Close() }

func (w *world) open(s *sandbox) (ns.NetNS, error) {
	f, err := os.Open(s.file)
	if err != nil {
		return nil, err
	}
	return &netns{f, s}, nil
}

// node finds sandboxes.
type node struct{ w *world }

func (n node) Find(uid string, addrs []netip.Addr) (ns.NetNS, error) {
	n.w.mu.Lock()
	s := n.w.pods[uid]
	ok := s != nil && s.running
	n.w.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("pod %s: %w", uid, discover.ErrNotRunning)
	}
	return n.w.open(s)
}

func (n node) Open(path string) (ns.NetNS, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for _, s := range n.w.pods {
		if s.file == path {
			return n.w.open(s)
		}
	}
	return nil, os.ErrNotExist
}

func (n node) All() (map[string][]ns.NetNS, error) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	out := map[string][]ns.NetNS{}
	for uid, s := range n.w.pods {
		netns, err := n.w.open(s)
		if err != nil {
			return nil, err
		}
		out[uid] = append(out[uid], netns)
	}
	return out, nil
}

func (n node) Resolver(uid string) (resolver.Settings, error) {
	return resolver.Settings{Servers: []string{"192.0.2.1"}, Search: []string{uid + ".example"}, NDots: 2}, nil
}

func (n node) Running() (map[string][]uint64, error) {
	all, err := n.All()
	out := map[string][]uint64{}
	for uid, list := range all {
		for _, one := range list {
			if one.(*netns).s.running {
				inode, err := discover.Inode(one)
				if err != nil {
					return nil, err
				}
				out[uid] = append(out[uid], inode)
			}
			one.Close()
		}
	}
	return out, err
}

// kernel is pods' rules. It checks what must hold at the moment of each change.
type kernel struct{ w *world }

func (k kernel) change(ctx context.Context, step string, n ns.NetNS, f func(*sandbox)) error {
	s := n.(*netns).s
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := k.w.step(step, s.uid); err != nil {
		return err
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	f(s)
	return nil
}

// redirectsNames tells whether a set redirects name queries.
func redirectsNames(s rules.Set) bool {
	return strings.Contains(s.String(), "--to-ports "+strconv.Itoa(api.PortDNS))
}

func (k kernel) Fill(ctx context.Context, n ns.NetNS, set rules.Set) error {
	if n.(*netns).s.foreign {
		return rules.ErrForeign
	}
	return k.change(ctx, "fill", n, func(s *sandbox) { s.filled, s.right, s.names = true, true, redirectsNames(set) })
}

func (k kernel) Hook(ctx context.Context, n ns.NetNS, _ rules.Set) error {
	return k.change(ctx, "hook", n, func(s *sandbox) {
		if !s.filled {
			k.w.broken = append(k.w.broken, s.uid+": hooked before filled")
		}
		if s.running && !k.w.serves(s.uid) {
			k.w.broken = append(k.w.broken, s.uid+": a pod that runs was hooked before a node proxy served it")
		}
		if s.running && !s.exempt && !s.hooked {
			k.w.broken = append(k.w.broken, s.uid+": hooked before its connections were exempted")
		}
		s.hooked = true
		if s.names && !k.w.dns {
			k.w.broken = append(k.w.broken, s.uid+": name queries go nowhere")
		}
	})
}

func (k kernel) Unhook(ctx context.Context, n ns.NetNS) error {
	return k.change(ctx, "unhook", n, func(s *sandbox) { s.hooked = false })
}

func (k kernel) Remove(ctx context.Context, n ns.NetNS) error {
	return k.change(ctx, "remove", n, func(s *sandbox) { s.filled, s.hooked, s.right, s.exempt = false, false, false, false })
}

func (k kernel) Inspect(ctx context.Context, n ns.NetNS, set rules.Set) (rules.State, error) {
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	if k.w.fail["inspect"] != 0 {
		k.w.fail["inspect"]--
		return rules.State{}, errors.New("inspect fails as the test wants")
	}
	s := n.(*netns).s
	st := rules.State{Captured: s.hooked, Leftover: s.filled, Foreign: s.foreign, Names: s.hooked && s.names}
	if !s.filled || !s.right || s.names != redirectsNames(set) {
		st.Differences = append(st.Differences, "chain differs")
	}
	if !s.hooked {
		st.Differences = append(st.Differences, "not hooked")
	}
	return st, nil
}

// connections is connection tracking.
type connections struct{ w *world }

func (c connections) Exempt(n ns.NetNS) (int, error) {
	return 0, kernel(c).change(context.Background(), "exempt", n, func(s *sandbox) { s.exempt = true })
}

func (c connections) Hold(n ns.NetNS) error {
	return c.w.step("hold", n.(*netns).s.uid)
}

func (c connections) NamesServed(n ns.NetNS) (bool, error) {
	s := n.(*netns).s
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	return c.w.serves(s.uid) && c.w.dns || c.w.depot != nil && c.w.depot.Len() > 0, nil
}

func (c connections) ForgetNames(n ns.NetNS, redirected bool) (int, error) {
	return 0, c.w.step(map[bool]string{false: "names-out", true: "names-in"}[redirected], n.(*netns).s.uid)
}

func (c connections) Usage(n ns.NetNS) (conntrack.Use, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	return n.(*netns).s.use, nil
}

// probeSets is the host's exemption.
type probeSets struct{ w *world }

func (p probeSets) Ensure(context.Context) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.host = true
	return nil
}

func (p probeSets) Put(uid string, addrs []netip.Addr) error {
	if err := p.w.step("put", uid); err != nil {
		return err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	for _, a := range addrs {
		p.w.sets[a] = uid
	}
	return nil
}

func (p probeSets) Delete(uid string) error {
	if err := p.w.step("unput", uid); err != nil {
		return err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	maps.DeleteFunc(p.w.sets, func(_ netip.Addr, owner string) bool { return owner == uid })
	return nil
}

func (p probeSets) Entries() (map[netip.Addr]string, error) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return maps.Clone(p.w.sets), nil
}

func (p probeSets) Remove(context.Context) error {
	if err := p.w.step("unhost", "host"); err != nil {
		return err
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.host = false
	clear(p.w.sets)
	return nil
}

// installation is the plugin on the node.
type installation struct{ w *world }

func (i installation) Run(ctx context.Context) error {
	i.w.mu.Lock()
	i.w.entry = true
	i.w.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (i installation) Installed() bool {
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	return i.w.entry
}

func (i installation) Uninstall() error {
	if err := i.w.step("uninstall", "host"); err != nil {
		return err
	}
	i.w.mu.Lock()
	defer i.w.mu.Unlock()
	i.w.entry = false
	return nil
}
