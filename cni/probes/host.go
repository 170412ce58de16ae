package probes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/xtables"
)

// chain is the name of our chain in the host's nat table; Istio ambient's, so that either agent finds the other's.
const chain = "ISTIO_POSTRT"

// Config configures a Host.
type Config struct {
	// NetNS is the host's network namespace; the Host does not close it.
	NetNS ns.NetNS
	// Backend is the kind of iptables that the host uses.
	Backend *xtables.Backend
	// LockFile is the host's lock file for the legacy kind of iptables (/run/xtables.lock on the host). It is held during
	// changes, besides the one that the programs take, which may be the agent's own. Empty: only the latter.
	LockFile string
}

// Host is the probe exemption of one node. Put, Delete and Entries may be called at once; Ensure and Remove alone.
type Host struct{ cfg Config }

// New returns the probe exemption; it changes nothing yet.
func New(c Config) *Host { return &Host{cfg: c} }

// set is the address set of one family.
type set struct {
	family xtables.Family
	number uint8
	name   string
	source netip.Addr
}

func sets() []set {
	return []set{
		{xtables.IPv4, unix.AF_INET, api.ProbeSetIPv4, api.ProbeSourceIPv4},
		{xtables.IPv6, unix.AF_INET6, api.ProbeSetIPv6, api.ProbeSourceIPv6},
	}
}

func (s set) chain() xtables.Chain {
	return xtables.Chain{Table: "nat", Hook: "POSTROUTING", Name: chain, Rules: []string{
		"-p tcp -m owner --socket-exists -m set --match-set " + s.name + " dst -j SNAT --to-source " + s.source.String(),
	}}
}

// Ensure puts the sets and the chain in place, the chain before every other rule of its hook. Addresses that are in the
// sets stay.
func (h *Host) Ensure(ctx context.Context) error {
	return h.locked(ctx, "ensure probe exemption", func() error {
		for _, s := range sets() {
			if !has(s.family) {
				continue
			}
			err := netlink.IpsetCreate(s.name, "hash:ip", netlink.IpsetCreateOptions{Family: s.number, Comments: true})
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("create set %s: %w", s.name, err)
			}
			now, err := h.cfg.Backend.Read(ctx, s.family)
			if err != nil {
				return err
			}
			if err := h.cfg.Backend.Write(ctx, s.family, now, s.chain()); err != nil {
				return err
			}
			if err := h.cfg.Backend.Hook(ctx, s.family, now, s.chain(), true); err != nil {
				return err
			}
		}
		return nil
	})
}

func has(f xtables.Family) bool { return slices.Contains(xtables.Families(), f) }

// Put exempts probes to the addresses of the pod. An address that another pod had is the pod's from now on.
func (h *Host) Put(uid string, addrs []netip.Addr) error {
	return h.inside("exempt probes of pod "+uid, func() error {
		for _, a := range addrs {
			s := setOf(a)
			if !has(s.family) {
				continue
			}
			if err := netlink.IpsetAdd(s.name, &netlink.IPSetEntry{IP: a.Unmap().AsSlice(), Comment: uid, Replace: true}); err != nil {
				return fmt.Errorf("add %s to set %s: %w", a, s.name, err)
			}
		}
		return nil
	})
}

func setOf(a netip.Addr) set {
	if a.Unmap().Is4() {
		return sets()[0]
	}
	return sets()[1]
}

// Delete ends the exemption of the pod's addresses, but not of an address that another pod has by now.
func (h *Host) Delete(uid string) error {
	entries, err := h.Entries()
	if err != nil {
		return err
	}
	return h.inside("end exemption of probes of pod "+uid, func() error {
		for addr, owner := range entries {
			if owner != uid {
				continue
			}
			s := setOf(addr)
			err := netlink.IpsetDel(s.name, &netlink.IPSetEntry{IP: addr.AsSlice()})
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) {
				return fmt.Errorf("delete %s from set %s: %w", addr, s.name, err)
			}
		}
		return nil
	})
}

// Entries returns the addresses that are exempt and the pod of each.
func (h *Host) Entries() (map[netip.Addr]string, error) {
	out := map[netip.Addr]string{}
	err := h.inside("list probe exemptions", func() error {
		for _, s := range sets() {
			if !has(s.family) {
				continue
			}
			list, err := netlink.IpsetList(s.name)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return fmt.Errorf("list set %s: %w", s.name, err)
			}
			for _, e := range list.Entries {
				if a, ok := netip.AddrFromSlice(e.IP); ok {
					out[a.Unmap()] = e.Comment
				}
			}
		}
		return nil
	})
	return out, err
}

// lockWait bounds how long the host's iptables lock is waited for.
const lockWait = 10 * time.Second

// setGone bounds how long a set may stay in use by the rule that was just removed; the kernel frees rules later.
const setGone = 2 * time.Second

// Remove takes the chain and the sets away.
func (h *Host) Remove(ctx context.Context) error {
	return h.locked(ctx, "remove probe exemption", func() error {
		backends, err := xtables.Find()
		if err != nil {
			return err
		}
		for _, s := range sets() {
			if !has(s.family) {
				continue
			}
			for _, b := range backends {
				now, err := b.Read(ctx, s.family)
				if err != nil {
					return err
				}
				places := s.chain().Places()
				if err := b.Drop(ctx, s.family, now, places...); err != nil {
					return err
				}
			}
			if err := destroy(ctx, s.name); err != nil {
				return err
			}
		}
		return nil
	})
}

func destroy(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, setGone)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := netlink.IpsetDestroy(name)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("destroy set %s: %w", name, err)
		}
	}
}

// inside runs f on a thread of its own in the host's network namespace.
func (h *Host) inside(what string, f func() error) error {
	if err := h.cfg.NetNS.Do(func(ns.NetNS) error { return f() }); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// locked is inside under the lock that other programs on the host take, too.
func (h *Host) locked(ctx context.Context, what string, f func() error) error {
	if h.cfg.LockFile == "" || h.cfg.Backend.Kind != "legacy" {
		return h.inside(what, f)
	}
	file, err := os.OpenFile(h.cfg.LockFile, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		switch err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return h.inside(what, f)
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("%s: lock %s: %w", what, h.cfg.LockFile, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: lock %s: held by another program for %v", what, h.cfg.LockFile, lockWait)
		}
	}
}
