package sockets

import (
	"errors"

	"github.com/ambit-mesh/ambit/mesh/handover"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// holder is the Keeper as proxies see it that come after.
type holder struct{ *Keeper }

// Lend implements handover.Holder.
func (h holder) Lend(_ *handover.Session, ns handover.NetNS) ([]handover.Socket, bool) {
	return h.duplicates(netns.ID(ns)), false
}

// Taken implements handover.Holder.
func (h holder) Taken(s *handover.Session, ns handover.NetNS) {
	id := netns.ID(ns)
	h.mu.Lock()
	if h.taken[s] == nil {
		h.taken[s] = map[netns.ID]bool{}
	}
	h.taken[s][id] = true
	sockets := h.setPausedLocked(id, true)
	h.mu.Unlock()
	for _, socket := range sockets {
		socket.Pause()
	}
}

// Ended implements handover.Holder: what the session's process has taken over is served by this one again, if it still has it.
func (h holder) Ended(s *handover.Session) {
	h.mu.Lock()
	var sockets []Socket
	ids := h.taken[s]
	delete(h.taken, s)
	for id := range ids {
		if !h.takenLocked(id) && h.pods[id] != nil {
			sockets = append(sockets, h.setPausedLocked(id, false)...)
			h.todoLocked(id)
		}
	}
	h.mu.Unlock()
	for _, socket := range sockets {
		socket.Resume()
	}
	select {
	case h.again <- struct{}{}:
	default:
	}
	if len(sockets) > 0 {
		h.cfg.Logger.Warn("the proxy that had taken over is gone; serving again", "proxy", s.Peer, "pods", len(ids))
	}
}

func (k *Keeper) takenLocked(id netns.ID) bool {
	for _, ids := range k.taken {
		if ids[id] {
			return true
		}
	}
	return false
}

func (k *Keeper) setPausedLocked(id netns.ID, paused bool) []Socket {
	s := k.pods[id]
	if s == nil {
		return nil
	}
	s.paused = paused
	var all []Socket
	for socket := range s.sockets {
		all = append(all, socket)
	}
	return all
}

// errNoDeposit is the answer to a deposit: a proxy keeps its own sockets only.
var errNoDeposit = errors.New("a node proxy keeps no sockets of others")

// Deposit implements handover.Holder.
func (holder) Deposit(*handover.Session, handover.NetNS, []handover.Socket) error {
	return errNoDeposit
}
