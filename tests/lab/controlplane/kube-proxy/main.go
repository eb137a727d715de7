// Command kube-proxy is kube-proxy as it is, in a program of its own: it goes to the lab's machines, which are small.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
)

func main() {
	os.Exit(cli.Run(proxy.NewProxyCommand()))
}
