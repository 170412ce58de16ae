package agent

import (
	"net/netip"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/conntrack"
	"github.com/ambit-mesh/ambit/cni/enrolment"
	"github.com/ambit-mesh/ambit/cni/resolver"
)

// Pod is what the agent knows of a pod from the API.
type Pod struct {
	UID, Namespace, Name, ServiceAccount string
	// LocalUID is the UID under which kubelet runs the pod, where it differs: a static pod's.
	LocalUID string
	// Enrolment is what decides whether it is to be captured.
	Enrolment enrolment.Pod
	// Redirection is the value of api.AnnotationRedirection.
	Redirection string
	// DNS is what it asks of kubelet's DNS settings.
	DNS resolver.Wish
	// IPs are the pod's addresses; none before its sandbox is up.
	IPs []netip.Addr
}

// kubeletUID is the UID in the pod's control groups, and that which the runtime tells the plugin.
func (p Pod) kubeletUID() string {
	if p.LocalUID != "" {
		return p.LocalUID
	}
	return p.UID
}

// phase is what has been achieved for a pod.
type phase int

const (
	// unknown: not looked at yet, or an attempt failed half-way.
	unknown phase = iota
	// outside: nothing of ours is in its network namespace.
	outside
	// captured: rules, a node proxy, and the annotation were in place when last looked at.
	captured
	// draining: new connections are plain; tunnelled ones may be left.
	draining
)

// Order is what the agent has been told to do about all pods.
type Order string

// Orders.
const (
	// Serve: capture the pods that want to be.
	Serve Order = ""
	// Drain: release all pods as after un-enrolment.
	Drain Order = "drain"
	// Now: release all pods, with the connections that are left.
	Now Order = "now"
)

// podState is the loop's knowledge of one pod. Only the loop touches it, but for netns, which a running job of the pod
// may use.
type podState struct {
	pod      Pod
	seen     bool      // the informer knows the pod
	deleted  bool      // it did, and no longer does
	unseenAt time.Time // when to ask the API about a pod that the informer has not told of
	decision enrolment.Decision
	// decided: the pod's namespace is known, and so the decision is one.
	decided bool

	phase phase
	netns ns.NetNS // owned; nil unless known
	inode uint64   // of netns
	use   conntrack.Use
	names bool // name queries were redirected when last looked at

	busy     bool
	cancel   func() // ends the running job early
	starts   []startPod
	failures int
	failing  time.Time // since when every attempt has failed
	doneAt   time.Time // when the last job ended
	err      error
	due      time.Time // nothing is begun before
	settleAt time.Time // it is not un-enrolled before, since it has just started and informers may lag
	verifyAt time.Time
	holdAt   time.Time
	look     time.Duration // since a node proxy came or went: how soon it is held, and looked at, after the next job; 0 is as usual
	drainEnd time.Time
	told     string // what was said on the pod about values that are not understood
}

// action is what the loop does next about a pod.
type action int

const (
	nothing action = iota
	// start: its sandbox has come; asked for by the plugin, never planned.
	start
	// forget: the pod has ended; whoever serves it is told.
	forget
	// confirm: it has started long ago, and no informer has told of it; does it exist?
	confirm
	// enrol: bring it, running, to captured; or verify that it is.
	enrol
	// hold: keep half-closed connections of a captured pod from being forgotten.
	hold
	// withdraw: un-enrol it, up to draining.
	withdraw
	// drain: look whether the last tunnelled connection has ended, and remove what is left then.
	drain
)

// wanted says whether the pod is to be captured.
func (s *podState) wanted(order Order) bool { return s.decided && s.decision.Capture && order == Serve }

// clean says that nothing is to be done about the pod before something changes, and nothing of ours is left on it.
func (s *podState) clean() bool {
	neverBegun := s.phase == unknown && s.netns == nil && len(s.pod.IPs) == 0 && len(s.starts) == 0
	return !s.busy && (s.pod.Redirection == "" || s.pod.Enrolment.Ended) && (s.phase == outside || neverBegun)
}

// plan is the next action for a pod that has no job.
func (s *podState) plan(now time.Time, order Order) action {
	switch want := s.wanted(order); {
	case s.deleted || s.pod.Enrolment.Ended:
		if s.deleted || s.phase != outside || s.netns != nil {
			return forget
		}
		return nothing
	case !s.seen && !now.Before(s.unseenAt):
		return confirm
	case now.Before(s.due), !s.decided && order == Serve, !want && order == Serve && now.Before(s.settleAt):
		return nothing
	case s.phase == draining && !want:
		return drain
	case !want && s.phase == outside && s.pod.Redirection == "":
		return nothing
	case s.netns == nil && len(s.pod.IPs) == 0:
		// It has no sandbox yet. That comes by the plugin.
		if !want && s.pod.Redirection != "" {
			return withdraw
		}
		return nothing
	case !want:
		return withdraw
	case s.phase != captured, s.pod.Redirection != api.RedirectionEnabled, !now.Before(s.verifyAt):
		return enrol
	case !now.Before(s.holdAt):
		return hold
	}
	return nothing
}
