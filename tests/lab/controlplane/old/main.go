// Command kube-apiserver is an API server of a version before IPAddresses were served, for `make lab-old-api`.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Args = append([]string{"kube-apiserver"}, os.Args[2:]...)
	os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
}
