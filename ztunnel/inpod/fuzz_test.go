package inpod

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/mesh/handover"
)

// FuzzRequest reads any packet with any number of descriptors, as something that is not the agent may send it. What is accepted
// names its pod and has the descriptors that it needs; anything else breaks the protocol, and nothing more.
func FuzzRequest(f *testing.F) {
	for _, m := range []*zds.WorkloadRequest{
		{},
		{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{
			Uid: "u", WorkloadInfo: &zds.WorkloadInfo{Name: "n", Namespace: "ns", ServiceAccount: "sa"},
		}}},
		{Payload: &zds.WorkloadRequest_Keep{Keep: &zds.KeepWorkload{Uid: "u"}}},
		{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: "u"}}},
		{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(1), uint8(0))
		f.Add(b, uint8(0), uint8(0))
	}
	f.Add([]byte{}, uint8(3), uint8(unix.MSG_TRUNC))
	f.Fuzz(func(t *testing.T, packet []byte, count, flags uint8) {
		// The kernel makes the control message, so it is well formed. The descriptors are nobody's: they must not be closed.
		fds, err := handover.Descriptors(unix.UnixRights(make([]int, count%(maxDescriptors+1))...))
		if err != nil {
			t.Fatalf("control message: %v", err)
		}
		r := &request{fds: fds}
		if err := r.decode(packet, int(flags)); err != nil {
			if !errors.Is(err, errProtocol) {
				t.Fatalf("packet: %v", err)
			}
			return
		}
		add, isAdd := r.Payload.(*zds.WorkloadRequest_Add)
		if isAdd != (len(r.fds) == 1) || len(r.fds) > 1 {
			t.Errorf("%T was accepted with %d descriptors", r.Payload, len(r.fds))
		}
		if isAdd && (add.Add.GetUid() == "" || add.Add.GetWorkloadInfo().GetServiceAccount() == "") {
			t.Errorf("a pod without name was accepted: %v", add.Add)
		}
	})
}
