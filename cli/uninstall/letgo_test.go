package uninstall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// scene is a mesh with an agent on each of some nodes, and what it wrote.
type scene struct {
	*remover
	agent  *survey.Part
	client *fake.Clientset
	notes  *bytes.Buffer
	start  time.Time
}

// policies is a cluster's PeerAuthentications with the given modes.
func policies(modes ...string) *dynamicfake.FakeDynamicClient {
	var objects []runtime.Object
	for i, mode := range modes {
		objects = append(objects, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
			"metadata": map[string]any{"namespace": "shop", "name": fmt.Sprint("p", i)},
			"spec":     map[string]any{"mtls": map[string]any{"mode": mode}},
		}})
	}
	kinds := map[schema.GroupVersionResource]string{peerAuthentications: "PeerAuthenticationList"}
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, objects...)
}

func newScene(t *testing.T, timeout time.Duration, force bool, nodes ...string) *scene {
	t.Helper()
	labels := map[string]string{"k8s-app": "ambit-cni"}
	client := fake.NewClientset(&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "mesh", Name: "ambit-cni"}})
	for _, node := range nodes {
		_, err := client.CoreV1().Pods("mesh").Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "mesh", Name: "agent-" + node, Labels: labels},
			Spec:       corev1.PodSpec{NodeName: node},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	s := &scene{client: client, notes: &bytes.Buffer{}, start: time.Now()}
	s.agent = &survey.Part{Component: survey.Agent, Namespace: "mesh", Name: "ambit-cni", Selector: labels, Desired: len(nodes), Ready: len(nodes)}
	s.remover = &remover{
		env:     &command.Env{Console: console.Console{Out: s.notes, Err: s.notes}},
		cluster: &kube.Cluster{Kubernetes: client, Dynamic: policies()}, namespace: "mesh",
		options: options{timeout: timeout, force: force}, poll: time.Second,
	}
	return s
}

// order is what the agents are told.
func (s *scene) order(t *testing.T) string {
	t.Helper()
	ds, err := s.client.AppsV1().DaemonSets("mesh").Get(context.Background(), "ambit-cni", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ds.Annotations[releaseAnnotation]
}

func TestLetGoDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, time.Minute, false, "n1", "n2")
		s.report = func(_ context.Context, pod string) (agentReport, error) {
			switch since := time.Since(s.start); {
			case pod == "agent-n2" && since < 2*time.Second:
				return agentReport{}, errors.New("connection refused") // it is busy; asked again
			case pod == "agent-n1" && since < 5*time.Second:
				return agentReport{Phase: "draining", Pods: 1, Connections: 2}, nil
			}
			return agentReport{Phase: phaseClean}, nil
		}
		if err := s.letGo(t.Context(), s.agent); err != nil {
			t.Fatal(err)
		}
		want := "  1 pod left, 2 connections through the mesh; 1 agent does not answer\n  1 pod left, 2 connections through the mesh\n"
		if diff := cmp.Diff(want, s.notes.String()); diff != "" {
			t.Errorf("notes (-want +got):\n%s", diff)
		}
		if took := time.Since(s.start); took != 5*time.Second {
			t.Errorf("took %s", took)
		}
		if got := s.order(t); got != releaseDrain {
			t.Errorf("the agents are told %q", got)
		}
	})
}

func TestLetGoStrict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, time.Minute, false, "n1")
		s.cluster.Dynamic = policies("STRICT", "PERMISSIVE")
		s.report = func(context.Context, string) (agentReport, error) { return agentReport{Phase: phaseClean}, nil }
		if err := s.letGo(t.Context(), s.agent); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(s.notes.String(), "1 PeerAuthentication asks for STRICT mutual TLS") {
			t.Errorf("notes:\n%s", s.notes)
		}
	})
}

func TestLetGoCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 10*time.Second, false, "n1")
		s.report = func(context.Context, string) (agentReport, error) {
			if s.order(t) == releaseNow {
				return agentReport{Phase: phaseClean}, nil
			}
			return agentReport{Phase: "draining", Pods: 2, Connections: 7}, nil
		}
		if err := s.letGo(t.Context(), s.agent); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(s.notes.String(), "Time is up: cutting 7 connections of 2 pods\n") {
			t.Errorf("notes:\n%s", s.notes)
		}
	})
}

// Once the nodes are clean the node proxies carry nothing: they are not given their whole grace period.
func TestIdleProxiesEndAtOnce(t *testing.T) {
	for _, idle := range []bool{true, false} {
		t.Run(fmt.Sprintf("idle %t", idle), func(t *testing.T) {
			s := newScene(t, time.Minute, false, "n1", "n2")
			s.poll = time.Millisecond
			var graces []*int64
			s.client.PrependReactor("delete", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
				graces = append(graces, action.(clienttesting.DeleteActionImpl).GetDeleteOptions().GracePeriodSeconds)
				return false, nil, nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			err := s.deleteDaemonSet(ctx, s.agent, idle)
			want := []*int64{new(idleGrace), new(idleGrace)}
			if !idle {
				want = nil // the fake cluster has nobody who deletes the pods of a DaemonSet that is gone
			}
			if (err == nil) != idle {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(want, graces); diff != "" {
				t.Errorf("grace periods (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLetGoUnclean(t *testing.T) {
	for _, force := range []bool{false, true} {
		t.Run(fmt.Sprintf("force=%v", force), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, time.Second, force, "n1", "n2")
				s.report = func(_ context.Context, pod string) (agentReport, error) {
					if pod == "agent-n1" {
						return agentReport{Phase: phaseClean}, nil
					}
					return agentReport{Phase: "draining", Pods: 1, Error: "remove rules of pod a/b: permission denied"}, nil
				}
				err := s.letGo(t.Context(), s.agent)
				if force != (err == nil) {
					t.Errorf("error %v", err)
				}
				if !strings.Contains(s.notes.String(), "  n2: draining, 1 pod left, 0 connections: remove rules of pod a/b: permission denied\n") {
					t.Errorf("notes:\n%s", s.notes)
				}
			})
		})
	}
}

// TestLetGoBrokenOff: the user's interrupt does not leave a mesh that has let go of its pods for ever.
func TestLetGoBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, time.Minute, false, "n1")
		s.report = func(context.Context, string) (agentReport, error) {
			return agentReport{Phase: "draining", Pods: 1}, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := s.letGo(ctx, s.agent); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if got := s.order(t); got != "" {
			t.Errorf("the agents are still told %q", got)
		}
		if !strings.Contains(s.notes.String(), "the mesh goes back to work") {
			t.Errorf("notes:\n%s", s.notes)
		}
	})
}

// TestLetGoMute: agents that cannot report, such as a peer's, are not waited for.
func TestLetGoMute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, time.Minute, false, "n1", "n2")
		s.report = func(context.Context, string) (agentReport, error) { return agentReport{}, errCannotReport }
		if err := s.letGo(t.Context(), s.agent); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(s.notes.String(), "2 agents do not report how far they are") {
			t.Errorf("notes:\n%s", s.notes)
		}
	})
}

func TestLetGoAgentAway(t *testing.T) {
	s := newScene(t, time.Minute, false, "n1")
	s.agent.Ready = 0
	if err := s.letGo(t.Context(), s.agent); err == nil || !strings.Contains(err.Error(), "0 of 1 agents are ready") {
		t.Errorf("error %v", err)
	}
	if got := s.order(t); got != "" {
		t.Errorf("the agents are told %q", got)
	}
}
